"""How NumPy and PyTorch use a processor: variables that they read when they are first imported.

The commands set them (:func:`tune_cpu`), and so does a job's task on its node; ``import unimmad`` sets nothing.
Processes that these start inherit them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

SWITCH = "UNIMMAD_CPU_TUNING"
"""0 in this variable leaves all the others as they are."""
VARIABLE = "NPY_DISABLE_CPU_FEATURES"
AVX512 = "X86_V4"
"""NumPy's name for its AVX-512 group."""
_CPU_INFO = Path("/proc/cpuinfo")

SPIN_VARIABLE = "GOMP_SPINCOUNT"
WAIT_VARIABLE = "OMP_WAIT_POLICY"
SHORT_SPIN = "20000"
"""Turns of an idle OpenMP thread's loop before it sleeps: a third of a millisecond, a fifteenth of GNU's default."""


def tune_cpu() -> None:
    """Set ``NPY_DISABLE_CPU_FEATURES`` and ``GOMP_SPINCOUNT`` in ``os.environ`` where they help this process.

    For programs of one's own, too, as their first line: what is imported already does not look at them again, and they
    are then left alone. So is what the user has set, and everything where ``UNIMMAD_CPU_TUNING`` is 0.
    """
    if os.environ.get(SWITCH) != "0":
        _prefer_fast_sort()
        _let_idle_threads_sleep()


def _prefer_fast_sort() -> None:
    """On AMD processors, let NumPy sort with AVX2 instead of AVX-512, unless the user has set ``VARIABLE``.

    Its AVX-512 sort stores compressed vectors, which AMD's Zen 4 does in microcode: 39 ns a number instead of 6,
    measured over 6.5 million of them.
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


def _let_idle_threads_sleep() -> None:
    """Let OpenMP's idle threads leave their cores sooner, unless the user has said how they wait.

    NNPACK's threads take turns with PyTorch's (model/backends/convolution.py), and so do those of several ranks on a
    machine. GNU's default spins for some 5 ms, in which the others wait.
    """
    if WAIT_VARIABLE not in os.environ and "torch" not in sys.modules:
        os.environ.setdefault(SPIN_VARIABLE, SHORT_SPIN)
