"""Train UniMMAD.

    deepspeed unimmad/train.py --deepspeed_config ds_configs/ep4.json
    torchrun --nproc-per-node 2 unimmad/train.py --recipe paper --data shards/mvtec shards/visa
    python unimmad/train.py --set training.epochs=5

Without arguments it trains the demo recipe on the synthetic set. ``--help`` lists the rest.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> int:
    """As the command ``unimmad train``."""
    _leave_package_folder_off_the_path()
    from unimmad.cli.main import run

    return run("train")


def _leave_package_folder_off_the_path() -> None:
    """Python puts a script's own folder first on the path, where our modules would hide libraries of the same name."""
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != here]


if __name__ == "__main__":
    sys.exit(main())
