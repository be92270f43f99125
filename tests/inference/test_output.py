"""Each prediction is on disk as soon as it is made; what an interrupted command wrote is found again, and only that."""

from __future__ import annotations

import json
import resource
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unimmad.checkpoint.conformal import thresholds_by_sensors
from unimmad.checkpoint.thresholds import Thresholds
from unimmad.inference import output
from unimmad.inference.deciding import ALL_CLASSES
from unimmad.inference.output import LINES_NAME, PARTIAL_NAME, PredictionFolder, Row, screen_table
from unimmad.inference.prediction import Prediction

NAMES = ["a", "b", "c", "d"]
FINGERPRINTS = {name: f"print of {name}" for name in NAMES}


def prediction(name: str, score: float = 0.5) -> Prediction:
    picture = np.zeros((8, 8, 3), np.float32)
    map_HW = np.zeros((8, 8), np.float32)
    return Prediction(name, None, ("rgb",), {"rgb": f"{name}.png"}, score, map_HW, None, None, (), (("rgb", picture),))


def interrupted_after(folder: Path, names: list[str], fingerprints: dict[str, str] = FINGERPRINTS) -> None:
    """Leaves only what was written before the interruption, as a killed process does."""
    with suppress(KeyboardInterrupt), PredictionFolder(folder, fingerprints) as writing:
        for name in names:
            writing.add(prediction(name))
        raise KeyboardInterrupt


def names_in(file: Path) -> list[str]:
    return [json.loads(line)["name"] for line in file.read_bytes().splitlines()]


def test_each_line_is_on_disk_as_soon_as_its_prediction_is_made(tmp_path):
    with PredictionFolder(tmp_path, FINGERPRINTS) as writing:
        for done, name in enumerate(NAMES, start=1):
            writing.add(prediction(name))
            assert names_in(tmp_path / PARTIAL_NAME) == NAMES[:done]
            assert not (tmp_path / LINES_NAME).exists()
    assert names_in(tmp_path / LINES_NAME) == NAMES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", LINES_NAME]


def test_the_lines_have_the_order_of_the_samples_whatever_was_made_first(tmp_path):
    interrupted_after(tmp_path, ["c", "a"])
    with PredictionFolder(tmp_path, FINGERPRINTS) as writing:
        assert list(writing.rows) == ["c", "a"]
        for name in ("b", "d"):
            writing.add(prediction(name))
    assert names_in(tmp_path / LINES_NAME) == NAMES


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_line_cut_short_is_made_again(tmp_path, cut):
    interrupted_after(tmp_path, ["a", "b"])
    partial = tmp_path / PARTIAL_NAME
    partial.write_bytes(partial.read_bytes()[:-cut])
    with PredictionFolder(tmp_path, FINGERPRINTS) as writing:
        assert list(writing.rows) == ["a"]
        writing.add(prediction("b"))
    assert names_in(tmp_path / LINES_NAME) == ["a", "b"]


@pytest.mark.parametrize(
    "line",
    [b"no JSON\n", b"\xff\xfe\n", b"[]\n", b"\n", b'{"name": "b", "fingerprint": "print of b"}\n', b"[" * 5000 + b"\n"],
)
def test_a_damaged_line_is_passed_over(tmp_path, line):
    interrupted_after(tmp_path, ["a"])
    partial = tmp_path / PARTIAL_NAME
    partial.write_bytes(line + partial.read_bytes())
    with PredictionFolder(tmp_path, FINGERPRINTS) as writing:
        assert list(writing.rows) == ["a"]
        writing.add(prediction("b"))
    assert names_in(tmp_path / LINES_NAME) == ["a", "b"]


def test_lines_of_another_fingerprint_do_not_count(tmp_path):
    interrupted_after(tmp_path, ["a", "b"], {**FINGERPRINTS, "a": "the file was another one then"})
    with PredictionFolder(tmp_path, FINGERPRINTS) as writing:
        assert list(writing.rows) == ["b"]
        writing.add(prediction("a", score=0.75))
    lines = [json.loads(line) for line in (tmp_path / LINES_NAME).read_text().splitlines()]
    assert [(line["name"], line["score"]) for line in lines] == [("a", 0.75), ("b", 0.5)]


def test_pictures_of_an_earlier_prediction_go_and_nothing_else(tmp_path):
    other = tmp_path / "out"
    with PredictionFolder(other, dict.fromkeys(["gone", "a"], "1"), with_maps=True) as writing:
        writing.add(prediction("gone"))
        writing.add(prediction("a"))
    interrupted_after(other, ["half"], {"half": "1"})
    for file in ("kept.png", "out/kept.png", "out/pictures/kept.png"):
        (tmp_path / file).write_bytes(b"x")
    with (other / LINES_NAME).open("ab") as file:
        for named in ("../kept.png", "pictures/../kept.png", "/kept.png", "kept.png"):
            line = {"name": "x", "fingerprint": "", "score": 1.0, "anomalous": None, "threshold_of": None, "notes": []}
            file.write(json.dumps({**line, "picture": named}).encode() + b"\n")
    with PredictionFolder(other, FINGERPRINTS) as writing:
        writing.add(prediction("a"))
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    pictures = ["out/pictures/a.png", "out/pictures/kept.png"]
    assert left == ["kept.png", "out/kept.png", *pictures, f"out/{LINES_NAME}"]


def test_the_title_says_what_the_colours_mean(tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(output, "save_heat_map", lambda *arguments: titles.append((arguments[2], *arguments[5])))
    decided_one = replace(prediction("b"), threshold=0.25, limits=(0.1, 0.4))
    with PredictionFolder(tmp_path, FINGERPRINTS) as writing:
        writing.add(prediction("a"))
        writing.add(decided_one)
    assert titles == [
        ((0.0, 1.0), "a", "score 0.5, not decided; colours over this map's own range"),
        ((0.1, 0.4), "b", "score 0.5, anomalous (threshold 0.25)"),
    ]


def test_two_predictions_do_not_write_to_one_folder_at_once(tmp_path):
    with PredictionFolder(tmp_path, FINGERPRINTS) as first:
        first.add(prediction("a"))
        with (
            pytest.raises(ValueError, match="another prediction is being written to"),
            PredictionFolder(tmp_path, FINGERPRINTS),
        ):
            pass
        first.add(prediction("b"))
    with PredictionFolder(tmp_path, FINGERPRINTS) as second:
        assert not second.rows


def test_an_interruption_before_the_first_prediction_leaves_nothing(tmp_path):
    interrupted_after(tmp_path / "out", [])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_removed_meanwhile_loses_no_line(tmp_path):
    with PredictionFolder(tmp_path / "out", FINGERPRINTS) as writing:
        writing.add(prediction("a"))
        shutil.rmtree(tmp_path / "out")
        writing.add(prediction("b"))
    assert names_in(tmp_path / "out" / LINES_NAME) == ["a", "b"]


@pytest.mark.parametrize("room", [0, 1, 50])
def test_a_full_disk_is_one_line_and_what_was_written_before_counts(tmp_path, room):
    plain = [replace(prediction(name), pictures=()) for name in NAMES]
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with suppress(KeyboardInterrupt), PredictionFolder(tmp_path, FINGERPRINTS) as writing:
        writing.add(plain[0])
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / PARTIAL_NAME).stat().st_size + room, hard))
        try:
            with pytest.raises(
                ValueError, match=r"cannot write .*predictions\.partial\.jsonl: .*another output folder"
            ):
                writing.add(plain[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        raise KeyboardInterrupt
    with PredictionFolder(tmp_path, FINGERPRINTS) as again:
        assert list(again.rows) == ["a"]
        again.add(plain[1])
    assert names_in(tmp_path / LINES_NAME) == ["a", "b"]


def test_a_name_of_any_length_has_a_picture_of_its_own(tmp_path):
    names = [f"x/{letter * 251}" for letter in ("a", "é", "a")]
    names[2] += "-2"
    with PredictionFolder(tmp_path, dict.fromkeys(names, "1")) as writing:
        for name in names:
            writing.add(prediction(name))
    lines = [json.loads(line) for line in (tmp_path / LINES_NAME).read_text().splitlines()]
    assert [line["name"] for line in lines] == names
    assert len({line["picture"] for line in lines}) == 3
    assert all((tmp_path / line["picture"]).is_file() for line in lines)


def test_bytes_of_files_names_that_are_no_utf8_are_written_out(tmp_path):
    made = replace(prediction("a"), files={"rgb": b"caf\xe9.png".decode(errors="surrogateescape")})
    with PredictionFolder(tmp_path, FINGERPRINTS) as writing:
        writing.add(made)
    assert json.loads((tmp_path / LINES_NAME).read_bytes().decode())["files"] == {"rgb": r"caf\xe9.png"}


def test_names_do_not_steer_the_screen(tmp_path):
    name = "red\x1b[31m\nline\u202e"
    with PredictionFolder(tmp_path, {name: "1"}) as writing:
        writing.add(prediction(name))
    table = screen_table(list(writing.rows.values()), None)
    assert all(line.isprintable() for line in table.splitlines())
    assert len(table.splitlines()) == 4


def decided(threshold_of: str | None) -> Row:
    anomalous = None if threshold_of is None else True
    return Row(
        name="a",
        fingerprint="f",
        score=0.5,
        anomalous=anomalous,
        threshold_of=threshold_of,
        notes=(),
        modalities=("rgb",),
    )


@pytest.fixture
def thresholds() -> Thresholds:
    """At 0.3: three images of a class promise 1/4, two images 1/3, and the five together 1/6."""
    scores = {"a/many": {("rgb",): [0.1, 0.2, 0.3]}, "a/few": {("rgb",): [0.1, 0.2]}}
    return thresholds_by_sensors(scores, {}, tuple(scores), 0.3)


@pytest.mark.parametrize(
    ("used", "said"),
    [
        (["a/many", "a/few"], "2 anomalous, 0 normal, at a false-alarm rate of 0.333"),
        ([None], "0 anomalous, 0 normal, 1 not decided"),
        (["a/few", None], "1 anomalous, 0 normal, 1 not decided, at a false-alarm rate of 0.333"),
        (["a/many"], "1 anomalous, 0 normal, at a false-alarm rate of 0.3"),
        ([ALL_CLASSES], "1 anomalous, 0 normal, at a false-alarm rate of 0.3"),
    ],
)
def test_the_rate_is_one_that_all_thresholds_used_promise(thresholds, used, said):
    assert screen_table([decided(name) for name in used], thresholds).splitlines()[-1] == said


def test_it_says_which_decisions_promise_no_rate(thresholds):
    """Borrowed thresholds, or that of all classes for a class that went not into it."""
    promised, unpromised = decided("a/many"), decided(ALL_CLASSES).model_copy(update={"threshold_promised": False})
    last = screen_table([promised, unpromised], thresholds).splitlines()[-1]
    assert last == "2 anomalous, 0 normal, at a false-alarm rate of 0.3, but 1 by thresholds that promise none"
    last = screen_table([unpromised], thresholds).splitlines()[-1]
    assert last == "1 anomalous, 0 normal, by thresholds that promise no false-alarm rate"


def test_without_thresholds_it_says_how_to_get_them():
    last = screen_table([decided(None)], None).splitlines()[-1]
    assert "unimmad calibrate" in last
    assert "unimmad shards --calibration-fraction" in last
    said = screen_table([decided(None)], None, exported=True)
    assert said.endswith("calibrate its checkpoint (unimmad calibrate), and export it again")
    assert "beside the checkpoint" not in said
