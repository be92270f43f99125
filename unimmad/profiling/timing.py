"""Seconds of pieces of work, taken in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from tqdm import tqdm

Work = Callable[[], Tensor]
"""Does it once; gives what came of it, to be compared."""


def interleaved_seconds(
    works: Mapping[str, Work], repeats: int, device: torch.device, label: str = ""
) -> dict[str, list[float]]:
    """Seconds of every run: all works once, then all again, so that what else the machine does meets all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    with tqdm(total=repeats * len(works), desc=label, unit="run", leave=False, disable=None) as bar:
        for _ in range(repeats):
            for name, work in works.items():
                synchronise(device)
                started = time.perf_counter()
                work()
                synchronise(device)
                seconds[name].append(time.perf_counter() - started)
                bar.update()
    return seconds


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
