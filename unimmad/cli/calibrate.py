"""The command ``unimmad calibrate``: the same as ``unimmad evaluate --calibrate``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from unimmad.cli.evaluate import main as evaluate_main


def main(argv: Sequence[str] | None = None) -> int:
    """Thresholds from the split ``calibration``; 0, or 2 where something given is wrong."""
    return evaluate_main(["--calibrate", *(sys.argv[1:] if argv is None else argv)])
