"""A checkpoint outlives the layout that wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest
from parity.report import RESUME_BOUND
from parity.resume import CONTINUED_AT, SAVED_AT, ResumeTable


def check(table: ResumeTable, layouts) -> None:
    for row in table.rows(layouts):
        assert row.resaved_equal, row.layout
        assert row.rates_equal, row.layout
        assert row.loss <= RESUME_BOUND, row
        if row.layout == SAVED_AT:
            assert row.bit_for_bit


def test_the_same_layout_continues_bit_for_bit_and_another_to_rounding(parity_shards, tmp_path: Path):
    check(ResumeTable(parity_shards, tmp_path), CONTINUED_AT[:2])


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_layout_continues(parity_shards, tmp_path: Path):
    check(ResumeTable(parity_shards, tmp_path), CONTINUED_AT)
