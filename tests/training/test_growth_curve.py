"""The table and the curve of docs/continual.md, from what grown runs keep."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tools import growth_curve

OLD, NEW = "parts/bolt", "parts/nut"


def grown(folder: Path, old: float, new: float | None) -> Path:
    """What grow writes, the new class without metrics where ``new`` is None."""
    folder.mkdir()
    classes = {
        OLD: {"new": False, "before": {"I-AUROC": 0.9}, "after": {"I-AUROC": old}},
        NEW: {"new": True, "before": None, "after": None if new is None else {"I-AUROC": new}},
    }
    (folder / "forgetting.json").write_text(json.dumps({"classes": classes}))
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch) -> list[Path]:
    monkeypatch.setattr(growth_curve, "steps", lambda run: int(run.name))
    return [grown(tmp_path / "150", 0.88, 0.75), grown(tmp_path / "25", 0.89, 0.5), grown(tmp_path / "75", 0.885, None)]


def test_rows_go_by_their_steps_and_what_was_not_measured_is_said(runs, tmp_path, capsys):
    growth_curve.main([*map(str, runs), "--target", str(tmp_path / "curve.png")])
    assert capsys.readouterr().out.splitlines() == [
        f"| steps | {OLD} | {NEW} |",
        "| ---: | ---: | ---: |",
        "| 25 | 0.890 | 0.500 |",
        "| 75 | 0.885 | n/a |",
        "| 150 | 0.880 | 0.750 |",
    ]
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > 300


def test_the_curve_begins_with_what_old_classes_had_and_shows_what_training_together_gives(runs):
    of_steps = [(int(run.name), json.loads((run / "forgetting.json").read_text())["classes"]) for run in runs[1:]]
    axes = growth_curve.drawn(of_steps, {NEW: 0.8}).axes[0]
    old, new, together = axes.lines
    assert list(zip(*old.get_data(), strict=True)) == [(0, 0.9), (25, 0.89), (75, 0.885)]
    assert list(new.get_xdata()) == [25], "at 75 it was not measured"
    assert set(together.get_ydata()) == {0.8}


def test_runs_of_other_classes_are_refused(runs, tmp_path, capsys):
    other = tmp_path / "300"
    other.mkdir()
    (other / "forgetting.json").write_text(json.dumps({"classes": {OLD: {}}}))
    with pytest.raises(SystemExit):
        growth_curve.main([str(runs[0]), str(other), "--target", str(tmp_path / "curve.png")])
    assert "the run of 300 steps has other classes than that of 150" in capsys.readouterr().err
