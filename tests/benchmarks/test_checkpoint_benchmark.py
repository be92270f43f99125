from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

import pytest
from launches import run

from benchmarks import checkpoint

TOOL = Path(__file__).parents[2] / "tools" / "benchmark.py"


def test_saving_verifying_and_resuming_are_measured_for_each_stage(tmp_path):
    words = ["checkpoint", "--recipe", "tiny", "--zero", "1", "--folder", str(tmp_path)]
    done = run([sys.executable, str(TOOL), *words], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    *table, told = done.stdout.splitlines()[-6:]
    rows = {cells[1].strip(): cells[2:-1] for line in table[2:] if (cells := line.split("|"))}
    assert rows.keys() == {"save, ZeRO 1", "verify, ZeRO 1", "resume, ZeRO 1"}
    (total, _, *parts, _) = [float(cell.removesuffix("MiB ")) for cell in rows["resume, ZeRO 1"]]
    assert total == pytest.approx(sum(parts), abs=0.11)
    assert told.startswith("recipe tiny, 0.05 GB")
    assert list(tmp_path.glob("tmp*")) == [], "what was written is gone"


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--folder .*nowhere is not a folder"):
        checkpoint.run(Namespace(recipe="tiny", zero=[0], folder=tmp_path / "nowhere"))
