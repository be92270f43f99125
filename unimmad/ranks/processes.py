"""What the processes of one run share: the machine's cores, and how long they wait for each other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist

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


@contextmanager
def meeting() -> Iterator[None]:
    """Around the call in which the processes of one run meet.

    Raises:
        ValueError: they cannot, since another program has their port, say.
    """
    try:
        yield
    except dist.DistNetworkError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ValueError(
            f"ranks can't meet at {where} ({str(error).splitlines()[0]}); if another program has that port, give a "
            "free one by --master_port (torchrun: --master-port)"
        ) from None
