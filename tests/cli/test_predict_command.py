"""The prediction command as a user types it, on a calibrated checkpoint and on one that is not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hand_made import hand_made_checkpoint, hand_made_shards
from PIL import Image

from unimmad.checkpoint.monitoring import MONITORING_NAME, load_reference
from unimmad.checkpoint.thresholds import THRESHOLDS_NAME
from unimmad.cli.evaluate import main as evaluate_main
from unimmad.cli.predict import main
from unimmad.config import load_recipe
from unimmad.inference.pictures import LINE

BESIDE = 60
"""Pixels beside the panels: the colour bar and its numbers."""
TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """runs/tiny, data/small (solids), and images: parts/a.png, parts/b.png; sets/x/rgb and sets/x/depth."""
    folder = tmp_path_factory.mktemp("predict")
    shards = hand_made_shards(folder / "data" / "small", ["solids"])
    index = json.loads((shards / "index.json").read_text())
    for sample in index["samples"]:
        if sample["split"] == "train" and sample["key"].endswith("1"):
            sample["split"] = "calibration"
    (shards / "index.json").write_text(json.dumps(index))
    hand_made_checkpoint(folder / "runs" / "tiny", load_recipe("tiny"), [Path("data/small")])
    rng = np.random.default_rng(0)
    for name in ("x/rgb/1", "x/rgb/2", "x/depth/1", "x/depth/2"):
        path = folder / "sets" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(1, 255, (40, 70, 3) if "rgb" in name else (40, 70), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture
def typed(place, monkeypatch, capsys):
    """Run the command in ``place``; returns its exit code, standard output and standard error."""

    def call(*argv: str) -> tuple[int, str, str]:
        monkeypatch.chdir(place)
        code = main(argv)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_a_folder_of_modality_folders_gives_lines_pictures_and_a_table(typed, place):
    code, out, _ = typed("--output-dir", "found", "--maps", "sets/x")
    assert code == 0
    first, second = lines_of(place / "found")
    assert (first["name"], second["name"]) == ("x/1", "x/2")
    assert first["files"] == {"rgb": "sets/x/rgb/1.png", "depth": "sets/x/depth/1.png"}
    assert first["anomalous"] is None
    for line in (first, second):
        assert f"{line['score']:.4g}" in out
        with Image.open(place / "found" / line["picture"]) as picture:
            width, height = picture.size
            assert width > 4 * (height - 3 * LINE) * 1.6
            bar_HWC = np.asarray(picture.convert("RGB"))[3 * LINE :, -BESIDE:]
            assert len(np.unique(bar_HWC.reshape(-1, 3), axis=0)) > 100, "the colour bar"
        map_HW = np.load(place / "found" / line["map"], allow_pickle=False)
        assert (map_HW.shape, map_HW.dtype) == ((40, 70), np.float32)  # the image's own size
    assert "No thresholds lie beside the checkpoint" in out
    assert max(map(len, out.splitlines())) <= 130


def test_one_sample_by_its_modalities(typed, place):
    argv = ["--modality", "rgb=sets/x/rgb/1.png", "--modality", "depth=sets/x/depth/1.png", "--no-pictures"]
    assert typed(*argv, "--output-dir", "single")[0] == 0
    (line,) = lines_of(place / "single")
    assert (line["modalities"], line["picture"], line["map"]) == (["rgb", "depth"], None, None)
    assert not (place / "single" / "pictures").exists()


def test_calibration_beside_the_checkpoint_brings_decisions(typed, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--calibrate", "--false-alarm-rate", "0.4", "--device", "cpu"])
    assert evaluate_main() == 0
    said = capsys.readouterr().out
    file = place / "runs/tiny/checkpoints/step_00000003" / THRESHOLDS_NAME
    kept = file.with_name(MONITORING_NAME)
    try:
        assert str(file.relative_to(place)) in said
        assert "solids/cookie" in said
        thresholds = json.loads(file.read_text())
        code, out, _ = typed("--class", "cookie", "--output-dir", "decided", "sets/x")
        assert code == 0
        own = thresholds["classes"]["solids/cookie"]["value"]
        for line in lines_of(place / "decided"):
            assert line["threshold"] == own
            assert line["anomalous"] == (line["score"] > own)
            assert line["monitor"]["reference"] == load_reference(file.parent).digest
            assert 0 < line["monitor"]["images"]["rgb"]["brightness"] < 1
        assert typed("--class", "cookie", "--no-monitor", "--no-pictures", "--output-dir", "alone", "sets/x")[0] == 0
        assert "monitor" not in lines_of(place / "alone")[0]
        rate = max(0.4, thresholds["classes"]["solids/cookie"]["promised_rate"])
        assert f"at a false-alarm rate of {rate:.3g}" in out
        assert thresholds["precision"] == "fp32"
        code, out, _ = typed("--class", "cookie", "--precision", "bf16", "--output-dir", "decided", "sets/x")
        assert "note: scored in bf16, by thresholds of scores in fp32" in out
        code, out, _ = typed("--class", "spoon", "--output-dir", "decided", "sets/x")
        assert "note: class spoon is not one that the model was trained on" in out
        assert lines_of(place / "decided")[0]["threshold"] == thresholds["all_classes"]["value"]
        assert lines_of(place / "decided")[0]["monitor"]["images"] == {}
    finally:
        file.unlink(missing_ok=True)
        kept.unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "give either files and folders, or --modality"),
        (["sets/x", "--modality", "rgb=sets/x/rgb/1.png"], "give either files and folders, or --modality"),
        (["sets/gone"], "sets/gone does not exist"),
        (["sets/x/rgb/1.png"], "give a folder with one folder a modality, or --modality NAME=FILE"),
        (["--modality", "thermal=sets/x/rgb/1.png"], "modality thermal is not known; known are rgb, depth"),
        (["--checkpoint", "gone", "sets/x"], "gone is not a checkpoint"),
        (["--checkpoint", "gone.onnx", "sets/x"], "gone.onnx does not exist"),
        (["--batch-size", "0", "sets/x"], "--batch-size 0"),
        (["--scale", "-1", "sets/x"], "--scale -1"),
        (["--scale", "1", "--no-pictures", "sets/x"], "--scale is for the heat maps"),
        (["--checkpoint", "gone.onnx", "--data", "data/small", "sets/x"], "gone.onnx says itself which modalities"),
        (["--device", "cuda:99", "sets/x"], "cuda:99 can't be used"),
    ],
)
def test_bad_input_is_one_line_and_code_2_and_writes_nothing(typed, place, argv, message):
    code, out, err = typed(*argv, "--output-dir", "bad")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (place / "bad").exists()


@pytest.fixture
def five(place, tmp_path) -> Path:
    """y/rgb/0.png to 4.png, of which 2.png is broken."""
    folder = tmp_path / "y" / "rgb"
    folder.mkdir(parents=True)
    for number in range(5):
        shutil.copy(place / "sets/x/rgb/1.png", folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"broken")
    return tmp_path / "y"


def test_what_comes_before_a_broken_image_is_kept_and_the_same_command_goes_on(typed, place, five, tmp_path):
    argv = ("--output-dir", str(tmp_path / "out"), str(five))
    code, _, err = typed(*argv)
    assert code == 2
    assert "2.png: does not open as PNG" in err
    assert "2 of 5 are scored, in" in err
    assert err.splitlines()[-1].startswith(("pytest", "__main__", "predict", "-c"))
    assert not (tmp_path / "out" / "predictions.jsonl").exists()
    partial = tmp_path / "out" / "predictions.partial.jsonl"
    first, second = (json.loads(line) for line in partial.read_text().splitlines())
    assert (first["name"], second["name"]) == ("y/0", "y/1")
    # Marked, to see that it is not scored again.
    partial.write_text(partial.read_text().replace(f'"score": {first["score"]}', '"score": -7.5', 1))
    shutil.copy(place / "sets/x/rgb/2.png", five / "rgb" / "2.png")
    code, out, _ = typed(*argv)
    assert (code, "skipped" in out) == (0, False)
    lines = lines_of(tmp_path / "out")
    assert [line["name"] for line in lines] == [f"y/{number}" for number in range(5)]
    assert lines[0]["score"] == -7.5
    assert "-7.5" in out
    assert not partial.exists()


@pytest.mark.parametrize("changed", ["class", "file"])
def test_what_is_not_the_same_is_scored_again(typed, place, five, tmp_path, changed):
    argv = ["--output-dir", str(tmp_path / "out"), str(five)]
    assert typed(*argv)[0] == 2
    partial = tmp_path / "out" / "predictions.partial.jsonl"
    (score,) = {json.loads(line)["score"] for line in partial.read_text().splitlines()}
    partial.write_text(partial.read_text().replace(f'"score": {score}', '"score": -7.5'))
    if changed == "file":
        shutil.copy(place / "sets/x/rgb/2.png", five / "rgb" / "0.png")
    else:
        argv += ["--class", "cookie"]
    assert typed("--on-error", "skip", *argv)[0] == 0
    kept = [line["score"] == -7.5 for line in lines_of(tmp_path / "out")]
    assert kept == ([False] * 4 if changed == "class" else [False, True, False, False])


def test_on_error_skip_leaves_out_what_is_broken_and_says_so(typed, five, tmp_path):
    code, out, err = typed("--on-error", "skip", "--output-dir", str(tmp_path / "out"), str(five))
    assert code == 0
    assert [line["name"] for line in lines_of(tmp_path / "out")] == ["y/0", "y/1", "y/3", "y/4"]
    assert "note: 1 of 5 skipped, which could not be scored: y/2" in out
    assert "skipped 1 of 5, which could not be scored:\n  y/2: " in err
    assert "2.png: does not open as PNG" in err


def test_nothing_that_can_be_scored_is_an_error_all_the_same(typed, five, tmp_path):
    for file in (five / "rgb").iterdir():
        file.write_bytes(b"broken")
    code, _, err = typed("--on-error", "skip", "--output-dir", str(tmp_path / "out"), str(five))
    assert code == 2
    assert "none of 5 could be scored" in err
    assert not (tmp_path / "out").exists()


def test_names_that_are_not_utf8_are_written_out(typed, five, tmp_path):
    for number in range(5):
        (five / "rgb" / f"{number}.png").rename(five / "rgb" / os.fsdecode(b"\xe9%d.png" % number))
    code, out, err = typed("--on-error", "skip", "--output-dir", str(tmp_path / "out"), str(five))
    assert code == 0
    assert r"1 of 5 skipped, which could not be scored: y/\xe92" in out
    assert r"y/\xe90" in out
    first = lines_of(tmp_path / "out")[0]
    assert (first["name"], first["picture"]) == (r"y/\xe90", r"pictures/y/\xe90.png")
    assert first["files"] == {"rgb": str(five / "rgb" / r"\xe90.png")}
    assert (tmp_path / "out" / first["picture"]).is_file()
    out.encode()
    err.encode(errors="backslashreplace")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_in_the_middle_leaves_what_was_done_and_the_same_command_goes_on(typed, place, five, tmp_path, number):
    shutil.copy(place / "sets/x/rgb/1.png", five / "rgb" / "2.png")
    argv = ["--output-dir", str(tmp_path / "out"), str(five)]
    dying = (
        "import os, sys\n"
        "from unimmad.cli import predict\n"
        "from unimmad.inference import output\n"
        "add = output.PredictionFolder.add\n"
        "def add_and_die(folder, prediction):\n"
        "    add(folder, prediction)\n"
        f"    if len(folder.rows) == 3: os.kill(os.getpid(), {int(number)})\n"
        "output.PredictionFolder.add = add_and_die\n"
        "sys.exit(predict.main(sys.argv[1:]))\n"
    )
    died = subprocess.run(
        [sys.executable, "-c", dying, *argv], cwd=place, capture_output=True, text=True, timeout=300, check=False
    )
    assert died.returncode == (130 if number == signal.SIGTERM else -signal.SIGKILL), died.stderr
    assert ("interrupted; 3 of 5 are scored, in" in died.stderr) == (number == signal.SIGTERM)
    assert "Traceback" not in died.stderr
    partial = tmp_path / "out" / "predictions.partial.jsonl"
    kept = partial.read_text()
    assert [json.loads(line)["name"] for line in kept.splitlines()] == ["y/0", "y/1", "y/2"]
    assert typed(*argv)[0] == 0
    assert [line["name"] for line in lines_of(tmp_path / "out")] == [f"y/{number}" for number in range(5)]
    assert (tmp_path / "out" / "predictions.jsonl").read_text().startswith(kept)


def test_the_script_is_the_command(tmp_path):
    done = subprocess.run(
        [sys.executable, str(TOOLS / "predict.py"), "x.png"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.startswith("predict.py: no run in runs/")


def test_all_broken_files_are_told_at_once(typed, five, tmp_path):
    """The first one ends the prediction; what comes after it is read, and not scored."""
    (five / "rgb" / "4.png").write_bytes(b"broken")
    code, _, err = typed("--output-dir", str(tmp_path / "out"), str(five))
    assert code == 2
    listed = err[err.index("2 samples can't be scored:") :].splitlines()
    assert [line[:6] for line in listed[1:3]] == ["  y/2:", "  y/4:"]
    assert "2 of 5 are scored, in" in listed[-1]
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".gif"])
def test_further_types_are_read_as_the_same_picture_in_png(typed, five, tmp_path, suffix):
    (five / "rgb" / "2.png").unlink()
    picture = Image.open(five / "rgb" / "0.png").quantize(64)
    picture.save(five / "rgb" / "0.png")
    (five / "rgb" / "1.png").unlink()
    picture.convert("RGB" if suffix != ".gif" else "P").save(five / "rgb" / f"1{suffix}", lossless=True)
    assert typed("--output-dir", str(tmp_path / "out"), str(five))[0] == 0
    first, second = lines_of(tmp_path / "out")[:2]
    assert second["files"] == {"rgb": str(five / "rgb" / f"1{suffix}")}
    assert second["score"] == first["score"]
