"""Model FLOPs utilisation (MFU): operations a second of training over those of large matrix products.

The operations of a token are counted once, in rank 0's first micro-batch, and the rate of its device is measured before
it; others are taken to be alike. Activations that are computed again count again. Nothing is counted where networks are
compiled: that would take an uncompiled step, which rounds otherwise, and rank 0 would be alone in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from unimmad.parallel.world import World
from unimmad.profiling.flops import counting_operations
from unimmad.profiling.machine import matrix_rate


class Utilisation:
    """Rank 0 counts and measures; others do nothing, and nobody where networks are compiled."""

    def __init__(self, world: World, precision: Literal["fp32", "bf16"], compiled: bool = False) -> None:
        self._world = world
        self._operations: int | None = 0 if compiled else None
        self._operations_a_token = 0.0
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._rate = matrix_rate(dtype, world.device) if world.is_main else 1.0

    @contextmanager
    def counting(self) -> Iterator[None]:
        """What runs inside is a micro-batch, forward and backward; the first one's operations are counted."""
        if self._operations is not None or not self._world.is_main:
            yield
            return
        with counting_operations() as counter:
            yield
        self._operations = counter.get_total_flops()

    def saw(self, tokens: int) -> None:
        """How many tokens the micro-batch counted had; later calls change nothing."""
        if self._operations and not self._operations_a_token:
            self._operations_a_token = self._operations / tokens

    def share(self, tokens: int, seconds: float) -> float | None:
        """Of the devices' rate, where all ranks together took ``seconds`` for so many tokens; None where nothing was
        counted."""
        if not self._operations_a_token:
            return None
        return self._operations_a_token * tokens / seconds / (self._rate * self._world.size)
