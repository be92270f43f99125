"""Parity: where experts live, how many ranks share the batch and what ZeRO partitions changes no number."""

from __future__ import annotations

from pathlib import Path

import pytest
from parity.cases import BASE, FULL, LAYOUTS, SHORT, Case
from parity.compare import Comparison
from parity.launch import compared
from parity.report import measured, parity_row

MOST_SENT = 1.05
"""Dispatched over routed bytes."""


def check(found: list[tuple[Case, Comparison]]) -> None:
    problems = [f"{parity_row(case, comparison)}: {comparison.problems}" for case, comparison in found]
    assert not any(comparison.problems for _, comparison in found), "\n".join(problems)
    for case, comparison in found:
        ratio = comparison.dispatched_over_routed
        if case.layout.ep_size == 1:
            assert ratio is None, "at ep_size 1 nothing is sent"
        else:
            assert ratio is not None
            assert 1 <= ratio <= MOST_SENT, case.name


def cases_of(world: int) -> list[Case]:
    return [case for case in SHORT if case.layout.world == world]


@pytest.mark.parametrize("world", [2, 4])
def test_one_layout_of_each_kind(world, parity_shards, tmp_path):
    check(list(compared(cases_of(world), parity_shards, tmp_path)))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("world", "ep_size"), sorted({(layout.world, layout.ep_size) for layout in LAYOUTS}))
def test_every_layout(world, ep_size, parity_shards, tmp_path):
    cases = [case for case in FULL if (case.layout.world, case.layout.ep_size) == (world, ep_size)]
    check(list(compared(cases, parity_shards, tmp_path)))


def test_the_full_matrix_is_full():
    assert {
        (case.layout.world, case.layout.ep_size, case.layout.zero_stage) for case in FULL if case.problem == BASE
    } == {(world, ep, zero) for world, ep in ((1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)) for zero in (0, 1, 2)}
    assert len({case.name for case in FULL}) == len(FULL)


def test_a_rank_holds_one_bank_however_many_there_are(parity_shards, tmp_path: Path):
    alone, pair = (measured(ranks, parity_shards, tmp_path) for ranks in (1, 2))
    assert (alone.banks, pair.banks) == (1, 2)
    assert pair.bank_state == alone.bank_state > 0.25 * alone.state
    # Leaders are spread as well, so the whole rather shrinks.
    assert pair.state <= alone.state
