"""Runs cases through real ``deepspeed`` launches, one for each (world, ep_size), and compares them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from launches import free_port, run
from parity.cases import Case, Problem
from parity.compare import BF16_BOUND, BOUND, Comparison, compare
from parity.record import Record, read_record
from parity.reference import run_reference

WORKER = Path(__file__).with_name("worker.py")
CASES_A_LAUNCH = 6
SECONDS_A_CASE = 240
ROUNDINGS = (
    {"parts": 2},
    {"parts": 4},
    {"parts": 8},
    {"parts": 2, "backwards": True},
    {"parts": 4, "backwards": True},
    {"parts": 8, "backwards": True},
    {"parts": 3},
    {"parts": 3, "backwards": True},
    {"parts": 5},
    {"parts": 5, "backwards": True},
    {"parts": 7},
    {"parts": 7, "backwards": True},
)
"""The reference is computed as it is, and again in these ways: the first, and others where a bound depends on it."""


def compared(cases: Sequence[Case], shards: Path, folder: Path) -> Iterator[tuple[Case, Comparison]]:
    """Each case's comparison, as its launch is done."""
    references: dict[Problem, References] = {}
    for group in _launches(cases):
        launch(group, shards, folder)
        for case in group:
            reference = references.setdefault(case.problem, References(case.problem, shards))
            yield case, reference.compare(read_record(folder / case.name))


class References:
    """A problem's reference and its draws of rounding, each computed when it is first needed."""

    def __init__(self, problem: Problem, shards: Path, device: str = "cpu") -> None:
        self._problem, self._shards, self._device = problem, shards, device
        self._bound = BF16_BOUND if problem.recipe.training.precision == "bf16" else BOUND
        self._whole = self._run()
        self._in_parts: list[Record] = []

    def compare(self, ours: Record) -> Comparison:
        """A further draw only widens bounds, so once a comparison holds the others are left out."""
        for number in range(1, len(ROUNDINGS) + 1):
            if len(self._in_parts) < number:
                self._in_parts.append(self._run(**ROUNDINGS[number - 1]))
            comparison = compare(ours, self._whole, self._in_parts[:number], self._bound)
            if not comparison.problems:
                break
        return comparison

    def _run(self, **rounding: Any) -> Record:
        with one_thread():
            return run_reference(self._shards, self._problem, device=self._device, **rounding)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As ranks that share two cores have; small layers gain nothing from more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def launch(cases: Sequence[Case], shards: Path, folder: Path) -> None:
    """Start the ranks, run the cases, wait."""
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--master_port", str(free_port())]
    ranks = ["--num_accelerators", str(cases[0].layout.world)]
    names = [case.name for case in cases]
    done = run([*launcher, *ranks, str(WORKER), str(shards), str(folder), *names], folder, SECONDS_A_CASE * len(cases))
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]


def _launches(cases: Sequence[Case]) -> list[list[Case]]:
    groups: dict[tuple[int, int], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.layout.world, case.layout.ep_size), []).append(case)
    return [
        group[start : start + CASES_A_LAUNCH]
        for group in groups.values()
        for start in range(0, len(group), CASES_A_LAUNCH)
    ]
