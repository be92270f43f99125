"""What this machine is and can do: its name, the memory taken, and its rate of large matrix products."""

from __future__ import annotations

import platform
import resource
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from unimmad.profiling.timing import Work, synchronise

MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices whose product shows what the machine can do."""
RATE_SIZE = {"cpu": 1024, "cuda": 8192}
"""The same where it is measured before training, which waits for it."""
SLOW_SIZE = 512
"""In place of both for half precision on a CPU: where it has no instructions for it, a large product takes minutes."""
RATE_SECONDS = 0.3
"""For which products are repeated then."""


def machine_name(device: torch.device) -> str:
    """Of the GPU, or of the processor where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        described = ""
    names = [line.partition(":")[2].strip() for line in described.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def peak_bytes(device: torch.device) -> int:
    """Since the process began. GPU: allocated by PyTorch. CPU: the process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def matrix_product(
    dtype: torch.dtype, device: torch.device, size: int | None = None, products: int = 1
) -> tuple[Work, int]:
    """Some large square matrix products and their operations; with TF32 where the process allows it."""
    size = size or _size(MATRIX_SIZE, dtype, device)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def multiply() -> Tensor:
        for _ in range(products):
            result = torch.mm(left, right)
        return result

    return multiply, products * 2 * size**3


def _size(sizes: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> int:
    if device.type == "cpu" and dtype.itemsize < torch.float32.itemsize:
        return SLOW_SIZE
    return sizes.get(device.type, sizes["cpu"])


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a large matrix product: the median of a third of a second. No random state is moved."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        multiply, operations = matrix_product(dtype, device, _size(RATE_SIZE, dtype, device))
    multiply()
    synchronise(device)
    seconds: list[float] = []
    while sum(seconds) < RATE_SECONDS:
        started = time.perf_counter()
        multiply()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return operations / statistics.median(seconds)
