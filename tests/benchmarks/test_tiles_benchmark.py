"""What the benchmark of tiles calls a peak."""

from __future__ import annotations

import numpy as np

from benchmarks.tiles import MIB, peak_memory


def test_a_peak_is_what_was_taken_beyond_what_was_held_and_begins_again() -> None:
    held = np.ones(8 * MIB)  # 64 MiB

    def take() -> None:
        assert np.ones(4 * MIB).sum() == 4 * MIB

    assert 28 * MIB < peak_memory(take) < 40 * MIB
    assert peak_memory(lambda: None) < 8 * MIB
    assert held[0] == 1
