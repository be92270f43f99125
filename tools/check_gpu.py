"""Check on one GPU what a CPU cannot show, and measure: one command, 8 minutes, one JSON and one Markdown table.

    python tools/check_gpu.py                                     all of it, into runs/check-gpu/
    python tools/check_gpu.py --only parity "30 steps"            some checks
    python tools/check_gpu.py --device cpu --minutes 60           the same checks on a CPU, at recipe tiny

It trains in bf16 and fp32, saves and resumes, compares with the local form, looks for waits, evaluates, exports, and
times itself beside the reference. Exit status 1 where a check failed. The checks are in tests/gpu/.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    # From a checkout: checks share code with the tests, and the package need not be installed.
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    importlib.import_module("unimmad.cpu_features").tune_cpu()
    return int(importlib.import_module("gpu.command").main(description=__doc__))


if __name__ == "__main__":
    sys.exit(main())
