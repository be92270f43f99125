"""Runs a function on several processes joined by gloo, once, and collects the arrays that each of them gives."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Arrays = dict[str, np.ndarray]
RankFunction = Callable[[int, int], dict[str, torch.Tensor]]
"""(rank, world size) -> tensors to compare, by name. A module's own function, since processes are spawned."""

TIMEOUT = 90
"""Seconds; a rank that waits for ever fails the test and is ended."""


def run_on_ranks(function: RankFunction, world_size: int, folder: Path) -> list[Arrays]:
    """What ``function`` gave on each rank, in the order of ranks."""
    context = mp.start_processes(
        _rank, (function, world_size, folder), nprocs=world_size, join=False, start_method="spawn"
    )
    deadline = time.monotonic() + TIMEOUT
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail(f"{function.__module__}.{function.__name__} depends on {world_size} ranks")
    return [_load(folder / f"rank{rank}.npz") for rank in range(world_size)]


def _rank(rank: int, function: RankFunction, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    # A file to meet at, since a port found free may be taken a moment later.
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=TIMEOUT),
    )
    results = function(rank, world_size)
    arrays: dict[str, Any] = {name: tensor.detach().numpy() for name, tensor in results.items()}
    np.savez(folder / f"rank{rank}.npz", **arrays)
    dist.barrier()
    dist.destroy_process_group()


def _load(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}
