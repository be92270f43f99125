"""The norm of the whole gradient at the steps that ask for it: one number, however ranks share the gradient out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from unimmad.parallel.world import World

CHUNK = 2**24
"""Elements squared at a time: a ZeRO partition may hold a whole model."""


class GradientNorm:
    """Looks at the gradient that the optimizer is about to apply, averaged over ranks, before it is clipped.

    Under ZeRO every element of it lies on one rank; else dense ones lie on all ranks and an expert's on those that hold
    it. Each rank's share of the squared norm is its own elements' squares over the number of their copies: the shares
    of all ranks add up to the whole. Nothing is communicated here, and nothing done in steps that do not ask.

    Args:
        optimizer: torch's own, before anything else hooks it.
        world: this rank among the others.
        ep_size: ranks that an expert-parallel parameter is spread over.
        zero_stage: 0, 1 or 2.
        clipped: whether gradients are clipped; DeepSpeed does that under ZeRO before this sees them.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, world: World, ep_size: int, zero_stage: int, clipped: bool
    ) -> None:
        self.wanted = False
        """Whether the next step is one to look at."""
        self._world = world
        self._copies_of_experts = world.size // ep_size
        self._zero = zero_stage > 0
        self._from_deepspeed = self._zero and clipped
        self._square = torch.zeros((), device=world.device)
        if not self._from_deepspeed:
            optimizer.register_step_pre_hook(self._look)

    def share(self, deepspeed_engine: Any) -> Tensor:
        """This rank's share of the last step's squared norm, a scalar on the device; the step must have been wanted."""
        if self._from_deepspeed:
            norm = torch.as_tensor(deepspeed_engine.get_global_grad_norm(), dtype=torch.float32)
            return norm.to(self._world.device).square() / self._world.size
        square, self._square = self._square, torch.zeros_like(self._square)
        return square

    def _look(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """ZeRO steps one group of parameters after the other, and calls this for each."""
        if not self.wanted:
            return
        with_gradient = [
            parameter for group in optimizer.param_groups for parameter in group["params"] if parameter.grad is not None
        ]
        by_copies: dict[int, list[Tensor]] = {}
        for parameter in with_gradient:
            by_copies.setdefault(self._copies(parameter), []).append(parameter.grad)
        for copies, gradients in by_copies.items():
            self._square = self._square + sum_of_squares(gradients).to(self._world.device) / copies

    def _copies(self, parameter: Tensor) -> int:
        if self._zero:
            return 1
        dense = getattr(parameter, "allreduce", True)
        return self._world.size if dense else self._copies_of_experts


def sum_of_squares(gradients: Iterable[Tensor]) -> Tensor:
    """A float32 scalar. (On a processor ``torch.linalg.vector_norm`` of millions of float32 is only good to 1e-5.)"""
    chunks = [chunk for gradient in gradients for chunk in gradient.detach().flatten().split(CHUNK)]
    return torch.stack([chunk.float().square().sum() for chunk in chunks]).sum()
