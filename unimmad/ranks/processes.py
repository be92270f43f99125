"""What the processes of one run share: the machine's cores, and how long they wait for each other."""

from __future__ import annotations

import os
from datetime import timedelta

import torch

TIMEOUT = timedelta(minutes=30)
"""How long a collective waits for the slowest rank; rank 0 may download weights or write a report meanwhile."""


def ranks_here(size: int) -> int:
    """How many of ``size`` ranks this machine has: torchrun and ``unimmad launch`` say the first, DeepSpeed's launcher
    the second."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or size)


def share_cores(ranks: int) -> None:
    """Divide the cores among the ranks of this machine; launchers leave each rank all of them, and they then fight."""
    if "OMP_NUM_THREADS" not in os.environ or ranks > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))
