"""The command from a folder to its page: what it prints, writes and returns, and that it goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch
from audit.made import make_parts, part
from data.disk_sets import save
from report.test_html_page import Page

from unimmad.audit import run
from unimmad.audit.brief import CHECKS
from unimmad.audit.patches import FeatureSettings
from unimmad.audit.samples import samples_of_shards
from unimmad.audit.suspects import DIM, GRID
from unimmad.cli import audit as command
from unimmad.cli.shards import main as make_shards
from unimmad.data.layouts import find_sets
from unimmad.data.writing.shards import write_shards


class Brightness:
    """In the place of a network: a patch is described by its mean colour."""

    def __init__(self, settings: FeatureSettings, device: torch.device) -> None:
        self.settings, self.origin = settings, "none: a test"

    def learn(self, kind: tuple[str, str], images_TCHW: torch.Tensor) -> None:
        assert kind[1] == "rgb"

    def digest(self) -> str:
        return ""

    def describe(self, kind: tuple[str, str], images_TCHW: torch.Tensor) -> torch.Tensor:
        pooled = torch.nn.functional.adaptive_avg_pool2d(images_TCHW, GRID).flatten(2).transpose(1, 2)
        return torch.nn.functional.pad(pooled, (0, DIM - 3)).half()


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PatchDescriber", Brightness)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    root = make_parts(tmp_path / "raw & <b>")
    image = part(4)
    image[20:44, 20:44] = (250, 5, 250)
    save(root / "part/train/good/04.png", image)  # nobody saw this defect
    save(root / "part/test/good/00.png", part(3))  # pixels of a training image
    return root


def test_a_source_and_its_shards_are_told_the_same(parts: Path, tmp_path: Path, capsys) -> None:
    assert command.main([str(parts), "--output-dir", str(tmp_path / "a"), "--image-size", "48"]) == 3
    said = capsys.readouterr().out
    assert "error: raw & <b>: pairs of images that are the same in training and test: 1" in said
    assert "do: remove them from one of the two" in said
    content = json.loads((tmp_path / "a/audit.json").read_text())
    assert content["worst"] == "error"
    [suspects] = content["suspicious_normals"].values()
    assert suspects[0]["file"].endswith("train/good/04.png")
    assert not (tmp_path / "a/.partial").exists()

    sets = [found.source for found in find_sets(parts)]
    write_shards(sets, tmp_path / "shards", progress=False, allow_duplicates=True)
    assert command.main([str(tmp_path / "shards"), "--output-dir", str(tmp_path / "b"), "--image-size", "48"]) == 3
    of_shards = json.loads((tmp_path / "b/audit.json").read_text())
    for key in ("classes", "values", "masks"):
        assert of_shards[key] == content[key]
    told = [[(one["check"], one["what"], one["count"]) for one in found["findings"]] for found in (content, of_shards)]
    assert told[0] == told[1]


def test_the_page_is_whole_and_shows_its_pictures(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "a/audit_pictures").mkdir(parents=True)
    (tmp_path / "a/audit_pictures/suspects-old.png").write_bytes(b"of an earlier audit")
    command.main([str(parts), "--output-dir", str(tmp_path / "a")])
    page = Page((tmp_path / "a/audit.html").read_text())
    assert "script" not in page.tags
    assert "raw & <b>, rgb" in page.text
    pictures = {tmp_path / "a" / unquote(image) for image in page.images}
    assert pictures == set((tmp_path / "a/audit_pictures").iterdir())
    assert {path.name.partition("-")[0] for path in pictures} == {"values.png", "small", "duplicates.png", "suspects"}


def test_an_interrupted_audit_goes_on(parts: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(run, "BLOCK", 8)
    measured: list[str] = []
    stop_at = [11]
    measure = run.measure

    def watched(task):
        if len(measured) == stop_at[0]:
            raise KeyboardInterrupt
        measured.append(task.audited.sample.key)
        return measure(task)

    monkeypatch.setattr(run, "measure", watched)
    monkeypatch.setattr(run, "_learn", lambda *_: None)  # it measures a few samples by itself
    output = ["--output-dir", str(tmp_path / "a")]
    assert command.main([str(parts), *output]) == 130
    assert "8 of 24 samples are kept: the same command goes on" in capsys.readouterr().err
    save(parts / "part/test/hole/05.png", part(9))
    stop_at[0] = -1
    assert command.main([str(parts), *output]) == 3
    assert len(measured) == 11 + 16
    assert "8 measured before" in capsys.readouterr().out
    again = json.loads((tmp_path / "a/audit.json").read_text())
    assert command.main([str(parts), "--output-dir", str(tmp_path / "b")]) == 3
    assert json.loads((tmp_path / "b/audit.json").read_text()) == again


def test_what_cannot_be_audited_is_one_line(tmp_path: Path, capsys) -> None:
    assert command.main([str(tmp_path / "nowhere"), "--output-dir", str(tmp_path / "a")]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_shards_are_audited_in_brief_once_written(tmp_path: Path, capsys) -> None:
    root = make_parts(tmp_path / "raw")
    for path in (root / "part/test/hole").iterdir():
        save(path.with_suffix(".npy"), part(int(path.stem) + 300).astype("float32") / 255)
        path.unlink()
    assert make_shards([str(root), "--target", str(tmp_path / "shards"), "--allow-duplicates"]) == 0
    said = capsys.readouterr().out
    assert "the file type tells the label of 100%" in said
    assert f"unimmad audit {tmp_path / 'shards'}" in said
    samples = samples_of_shards([tmp_path / "shards"])
    in_brief, whole = (
        [found for found in run.audit(samples, image_size=256, brief=brief).findings if found.check in CHECKS]
        for brief in (True, False)
    )
    assert in_brief == whole
    assert {"label", "size"} & {found.check for found in whole}
    assert make_shards([str(root), "--target", str(tmp_path / "more"), "--allow-duplicates", "--no-audit"]) == 0
    assert "tells the label" not in capsys.readouterr().out
