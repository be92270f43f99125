"""Joining the ranks: started by ``deepspeed``, ``torchrun``, a SLURM task or plain ``python``."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=30)
"""How long a collective waits for the slowest rank; rank 0 may download weights or draw pictures meanwhile."""


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    host_group: dist.ProcessGroup | None = None
    """All ranks by gloo, for what hosts agree on without waiting for their GPUs; None: the default group does it."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()

    def agreed(self, value: bool) -> bool:
        """Whether ``value`` holds on every rank."""
        flag = torch.tensor(int(value))
        if self.size > 1:
            dist.all_reduce(flag, dist.ReduceOp.MIN, group=self.host_group)
        return bool(flag)

    def from_main(self, value: str) -> str:
        """Rank 0's ``value`` on every rank."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, device=self.device)
        return values[0]

    def sums(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Counts by name, added up over all ranks."""
        of_ranks: list[Any] = [dict(counts)]
        if self.size > 1:
            of_ranks = [None] * self.size
            dist.all_gather_object(of_ranks, dict(counts))
        return dict(sum((Counter(of_rank) for of_rank in of_ranks), Counter()))


def join_world() -> World:
    """Start torch.distributed through DeepSpeed (NCCL on GPUs, else gloo); a plain process becomes a world of one."""
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())
    rank, size, local_rank = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    on_gpu = torch.cuda.is_available()
    # A launcher shows a rank all GPUs of the node, or its own alone.
    device = torch.device("cuda", local_rank % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    else:
        share_cores(ranks_here(size))
    _init_deepspeed("nccl" if on_gpu else "gloo")
    host_group = dist.new_group(backend="gloo", timeout=TIMEOUT) if on_gpu and size > 1 else None
    return World(rank, size, local_rank, device, host_group)


def leave_world() -> None:
    """End torch.distributed; harmless where it never began."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _init_deepspeed(backend: str) -> None:
    import deepspeed
    import deepspeed.ops

    # DeepSpeed would compile a shared-memory collective for minutes, with no way back when no compiler is there.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=backend, timeout=TIMEOUT, verbose=False)


def ranks_here(size: int) -> int:
    """How many of ``size`` ranks this machine has: torchrun and slurm/launch.py say the first, DeepSpeed's launcher the
    second."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or size)


def share_cores(ranks: int) -> None:
    """Divide the cores among the ranks of this machine; launchers leave each rank all of them, and they then fight."""
    if "OMP_NUM_THREADS" not in os.environ or ranks > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
