from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from unimmad.parallel.world import World
from unimmad.training.profiling import TRACE, profiling

CPU = torch.device("cpu")


def run_steps(folder: Path, steps: range | None, start: int, end: int, rank: int = 0, stop: int | None = None):
    """Each step multiplies matrices of its own size; what was said, and the sizes recorded."""
    said: list[str] = []
    with profiling(steps, folder, World(rank, 2, rank, CPU), start, end, said.append) as step_is_done:
        for step in range(start + 1, (stop or end) + 1):
            torch.ones(step, 7) @ torch.ones(7, step)
            step_is_done()
    return said


def events(folder: Path) -> list[str]:
    with gzip.open(folder / TRACE, "rt") as file:
        return [event["name"] for event in json.load(file)["traceEvents"]]


@pytest.mark.parametrize("steps", [range(3, 4), range(2, 5), range(1, 3)])
def test_the_steps_asked_for_are_recorded_and_no_others(tmp_path, steps):
    said = run_steps(tmp_path, steps, start=0, end=6)
    assert events(tmp_path).count("aten::mm") == len(steps)
    assert str(tmp_path / TRACE) in said[0]
    assert len(said) == 1


def test_a_run_that_goes_on_behind_them_says_so_and_records_nothing(tmp_path):
    assert "continues behind step 3" in run_steps(tmp_path, range(2, 4), start=3, end=6)[0]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_stopped_writes_what_it_has(tmp_path):
    run_steps(tmp_path, range(2, 6), start=0, end=6, stop=3)
    assert events(tmp_path).count("aten::mm") == 2


def test_other_ranks_and_runs_without_it_record_nothing(tmp_path):
    assert run_steps(tmp_path, range(2, 4), start=0, end=6, rank=1) == []
    assert run_steps(tmp_path, None, start=0, end=6) == []
    assert list(tmp_path.iterdir()) == []


def test_steps_behind_the_end_are_refused_on_every_rank(tmp_path):
    for rank in range(2):
        with pytest.raises(ValueError, match="--profile 5:7: this run ends with step 6"):
            run_steps(tmp_path, range(5, 8), start=0, end=6, rank=rank)
