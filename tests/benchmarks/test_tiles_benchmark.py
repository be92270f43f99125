"""What the benchmark of tiles calls a peak."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import numpy as np
from benchmarks.tiles import MIB, peak_memory

held = np.ones(8 * MIB)  # 64 MiB
taken = peak_memory(lambda: np.ones(16 * MIB).sum())  # 128 MiB
again = peak_memory(lambda: None)
print(taken // MIB, again // MIB, held[0])
"""


def test_a_peak_is_what_was_taken_beyond_what_was_held_and_begins_again() -> None:
    """In a process of its own: where much was freed before, what is taken need not be new."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    taken, again, _ = done.stdout.split()
    assert 110 < int(taken) < 146
    assert int(again) < 8
