"""How NumPy, PyTorch and the C library use a processor and its memory; settled before they are first imported."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

VARIABLE = "NPY_DISABLE_CPU_FEATURES"
AVX512 = "X86_V4"
"""NumPy's name for its AVX-512 group."""
_CPU_INFO = Path("/proc/cpuinfo")

SPIN_VARIABLE = "GOMP_SPINCOUNT"
WAIT_VARIABLE = "OMP_WAIT_POLICY"
SHORT_SPIN = "20000"
"""Turns of an idle OpenMP thread's loop before it sleeps: a third of a millisecond, a fifteenth of GNU's default."""

MALLOC_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's ``mallopt``."""
LARGEST_REUSED_BYTES = (2**30, 32 * 2**20)
"""Of one tensor; older glibc takes no more than the second."""
LARGEST_KEPT_BYTES = 2**31 - 1
"""Freed memory that a process keeps; as large as ``mallopt`` can be told."""


def prefer_fast_sort() -> None:
    """On AMD processors, let NumPy sort with AVX2 instead of AVX-512, unless the user has set ``VARIABLE``.

    Its AVX-512 sort stores compressed vectors, which AMD's Zen 4 does in microcode: 39 ns a number instead of 6,
    measured over 6.5 million of them. Without effect where NumPy is imported already.
    """
    if VARIABLE not in os.environ and "numpy" not in sys.modules and is_amd_with_avx512(_CPU_INFO):
        os.environ[VARIABLE] = AVX512


def is_amd_with_avx512(cpu_info: Path) -> bool:
    """By Linux's description of the processors; False where there is none."""
    try:
        first = cpu_info.read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return False
    return "AuthenticAMD" in first and " avx512f " in first


def let_idle_threads_sleep() -> None:
    """Let OpenMP's idle threads leave their cores sooner, unless the user has said how they wait.

    NNPACK's threads take turns with PyTorch's (model/convolution.py), and so do those of several ranks on a machine.
    GNU's default spins for some 5 ms, in which the others wait. Without effect where PyTorch is imported already.
    """
    if WAIT_VARIABLE not in os.environ and "torch" not in sys.modules:
        os.environ.setdefault(SPIN_VARIABLE, SHORT_SPIN)


def keep_freed_memory() -> None:
    """Let the C library use freed memory again rather than give it back, unless the user has told it how to behave.

    Memory taken anew costs a page fault for every 4 KiB, a tenth of a training step's time on a processor. Without
    effect where the C library is not glibc.
    """
    if any(variable in os.environ for variable in MALLOC_VARIABLES):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None and any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST_REUSED_BYTES):
        mallopt(M_TRIM_THRESHOLD, LARGEST_KEPT_BYTES)
