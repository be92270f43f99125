"""Train on a SLURM cluster, or on this machine, through submitit.

    python slurm/launch.py --nodes 4 --wait
    python slurm/launch.py --nodes 2 --gpus-per-node 8 --partition gpu -- --recipe paper --data shards/mvtec shards/visa
    python slurm/launch.py --nodes 4 --dry-run
    python slurm/launch.py --cluster local --tasks-per-node 2 --follow -- --max-steps 20
    python slurm/launch.py --sweep model.leaders=8,16,32 --wait

Everything behind ``--`` goes to the trainer. ``--help`` lists the options; docs/slurm.md explains them.
"""

from __future__ import annotations

import sys

from unimmad.cli.main import run

if __name__ == "__main__":
    sys.exit(run("launch"))
