"""Joining the ranks: started by ``deepspeed``, ``torchrun``, a SLURM task or plain ``python``."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from unimmad.parallel.private_deepspeed import without_shared_memory_collectives
from unimmad.ranks.exchange import Ranks
from unimmad.ranks.processes import TIMEOUT, meeting, ranks_here, share_cores

T = TypeVar("T")
STORE_TIMEOUT = timedelta(minutes=1)
"""A word about ranks that failed is not worth waiting longer for."""


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    host_group: dist.ProcessGroup | None = None
    """All ranks by gloo, for what hosts agree on without waiting for their GPUs; None: the default group does it."""
    store: dist.Store | None = None
    """Where ranks leave a word without meeting; None where there is one rank."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def ranks(self) -> Ranks:
        """The same processes, to tell each other what is not a tensor."""
        return Ranks(self.rank, self.size, self.host_group)

    def all_true(self, value: bool) -> bool:
        """Whether ``value`` holds on every rank."""
        flag = torch.tensor(int(value))
        if self.size > 1:
            dist.all_reduce(flag, dist.ReduceOp.MIN, group=self.host_group)
        return bool(flag)

    def largest(self, values: Sequence[int]) -> list[int]:
        """Of each of several numbers the largest that a rank gives."""
        largest = torch.tensor(list(values))
        if self.size > 1:
            dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.host_group)
        return [int(value) for value in largest]

    def global_sum(self, value: Tensor) -> Tensor:
        """``value`` summed over all ranks, without gradient. Collective."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total

    def together(self, action: Callable[[], T]) -> T:
        """What ``action``, which must not wait for other ranks, gives on this rank. Collective.

        Raises:
            SharedError: it failed on some rank; every rank raises it. A rank that is alone raises its error as it is.
        """
        with self.ranks.together():
            return action()

    def on_main(self, action: Callable[[], T]) -> T:
        """What ``action`` gives on rank 0, which alone does it, on every rank. Collective.

        Raises:
            SharedError: as ``together``.
        """
        with self.ranks.together():
            return self.ranks.broadcast_object(action() if self.is_main else None)  # type: ignore[return-value]

    def say_failed(self) -> None:
        """Before this rank leaves: the others may wait for it for a long time."""
        if self.store is not None:
            with contextlib.suppress(RuntimeError):
                self.store.set(_failed_key(), "")

    def has_failed_rank(self) -> bool:
        """Whether some rank has said so, or the store has gone with the process that held it. Any thread may ask."""
        try:
            return self.store is not None and self.store.check([_failed_key()])
        except RuntimeError:
            return True


def join_world(backend: str | None = None) -> World:
    """Start torch.distributed through DeepSpeed; a plain process becomes a world of one.

    ``backend`` is NCCL on GPUs and gloo elsewhere, unless given: NCCL refuses ranks that share a GPU.
    """
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
    _init_deepspeed(backend or ("nccl" if on_gpu else "gloo"))
    host_group = dist.new_group(backend="gloo", timeout=TIMEOUT) if on_gpu and size > 1 else None
    return World(rank, size, local_rank, device, host_group, _own_store() if size > 1 else None)


def leave_world() -> None:
    """End torch.distributed; harmless where it never began."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _own_store() -> dist.Store:
    """A connection of our own to the store at which ranks met: what another thread asks waits for no collective."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return dist.TCPStore(host, port, is_master=False, timeout=STORE_TIMEOUT, wait_for_workers=False)


def _failed_key() -> str:
    # torchrun's store outlives a restart of its ranks.
    return f"unimmad/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def _init_deepspeed(backend: str) -> None:
    import deepspeed

    without_shared_memory_collectives()
    with meeting():
        deepspeed.init_distributed(dist_backend=backend, timeout=TIMEOUT, verbose=False)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
