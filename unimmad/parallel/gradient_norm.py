"""The norm of the whole gradient, one number however ranks share the gradient out: reported, and clipped by.

Without ZeRO, DeepSpeed counts only the experts of one rank into the norm that it clips by, so that the ranks scale by
different and too small norms. With ZeRO 1 and 2 its norm is right, and it clips itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unimmad.parallel.world import World

EPSILON = 1e-6
"""As in ``torch.nn.utils.clip_grad_norm_``."""


def clip_whole_gradient(
    parameters: list[nn.Parameter], largest_norm: float, expert_group: dist.ProcessGroup | None
) -> Tensor:
    """Scale every gradient in place so that the norm of the whole, experts of all ranks included, is at most this.

    Collective over ``expert_group``, whose ranks together hold each expert once; None: there are no experts. Returns
    the norm before, a float32 scalar, the same on every rank.
    """
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    of_experts = _sum_of_squares([parameter for parameter in with_gradient if _is_experts(parameter)])
    if expert_group is not None:
        dist.all_reduce(of_experts, group=expert_group)
    norm = (
        _sum_of_squares([parameter for parameter in with_gradient if not _is_experts(parameter)]) + of_experts
    ).sqrt()
    scale = (largest_norm / (norm + EPSILON)).clamp(max=1.0)
    for parameter in with_gradient:
        assert parameter.grad is not None
        parameter.grad.mul_(scale)
    return norm


def _is_experts(parameter: nn.Parameter) -> bool:
    """Whether other ranks hold other parts of it, by DeepSpeed's mark."""
    return not getattr(parameter, "allreduce", True)


def _sum_of_squares(parameters: list[nn.Parameter]) -> Tensor:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return sum_of_squares(gradients) if gradients else torch.zeros(())


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
