"""What a GPU makes of fp32 operands: TF32 (10 bits of mantissa, many times the rate) or fp32 itself.

PyTorch allows TF32 to convolutions and not to matrix products unless told otherwise. Here both have it, or neither:
training says which once, at its start, and whatever scores goes without (evaluation/scoring.py). The choice is the
process's, not the thread's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple

import torch


class Tf32(NamedTuple):
    """Who may use it."""

    convolutions: bool
    products: str
    """As ``torch.set_float32_matmul_precision`` names it: ``highest`` is fp32, ``high`` TF32."""


BOTH = Tf32(True, "high")
NEITHER = Tf32(False, "highest")


def tf32() -> Tf32:
    """What the process allows now."""
    cudnn = torch.backends.cudnn
    convolutions = cudnn.conv.fp32_precision == "tf32" if hasattr(cudnn, "conv") else cudnn.allow_tf32
    try:
        return Tf32(convolutions, torch.get_float32_matmul_precision())
    except RuntimeError:  # set by fp32_precision alone, which the older setting has no name for
        return Tf32(convolutions, "high")


def allow_tf32(allowed: Tf32) -> None:
    """From now on, in the whole process.

    PyTorch 2.9 has ``fp32_precision`` beside the older settings and raises, in torch.export for one, where the two
    contradict each other; the older ones set both. But they leave convolutions to ``torch.backends.fp32_precision``
    where TF32 is to be off, so that is said, too.
    """
    torch.set_float32_matmul_precision(allowed.products)
    cudnn = torch.backends.cudnn
    cudnn.allow_tf32 = allowed.convolutions
    if hasattr(cudnn, "conv"):
        operations: tuple[Any, ...] = (cudnn.conv, cudnn.rnn)
        for operation in operations:
            operation.fp32_precision = "tf32" if allowed.convolutions else "ieee"


class _Without:
    """The first thread inside takes TF32 away, and the last one out gives it back."""

    def __init__(self) -> None:
        self._turn = Lock()
        self._inside = 0
        self._before = BOTH

    def __enter__(self) -> None:
        with self._turn:
            if not self._inside:
                self._before = tf32()
                allow_tf32(NEITHER)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._turn:
            self._inside -= 1
            if not self._inside:
                allow_tf32(self._before)


_WITHOUT = _Without()


@contextmanager
def without_tf32() -> Iterator[None]:
    """Convolutions and matrix products of fp32 operands in fp32; afterwards, when no thread is inside, as before."""
    with _WITHOUT:
        yield


def choose_for_training(allowed: bool, device: torch.device) -> str:
    """Say once, at the start, whether training's convolutions and products may use TF32; only GPUs are told.

    Returns:
        The choice in words.
    """
    if device.type != "cuda":
        return f"no TF32 on {device.type}"
    allow_tf32(BOTH if allowed else NEITHER)
    return "convolutions and matrix products of fp32 in TF32" if allowed else "no TF32"
