"""Gradient clipping by the norm of the whole gradient, where DeepSpeed's own is wrong.

Without ZeRO, DeepSpeed counts only the experts of one rank into the norm, so that the ranks scale by different and too
small norms. With ZeRO 1 and 2 its norm is right and this is not used.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn

from unimmad.parallel.gradient_norm import sum_of_squares

EPSILON = 1e-6
"""As in ``torch.nn.utils.clip_grad_norm_``."""


def clip_whole_gradient(parameters: list[nn.Parameter], largest_norm: float, expert_group: dist.ProcessGroup) -> Tensor:
    """Scale every gradient in place so that the norm of the whole, experts of all ranks included, is at most this.

    Collective over ``expert_group``, whose ranks together hold each expert once. Returns the norm before, a float32
    scalar, the same on every rank.
    """
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    of_experts = _sum_of_squares([parameter for parameter in with_gradient if _is_experts(parameter)])
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
    return sum_of_squares(parameter.grad for parameter in parameters if parameter.grad is not None)
