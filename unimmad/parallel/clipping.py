"""Gradient clipping by the norm of the whole gradient, where DeepSpeed's own is wrong.

Without ZeRO, DeepSpeed counts only the experts of one rank into the norm, so that the ranks scale by different and too
small norms. With ZeRO 1 and 2 its norm is right and this is not used.
"""

from __future__ import annotations

import torch.distributed as dist
from deepspeed.utils import groups
from torch import Tensor, nn

from unimmad.parallel.gradient_norm import sum_of_squares

EPSILON = 1e-6
"""As in ``torch.nn.utils.clip_grad_norm_``."""


def clip_whole_gradient(parameters: list[nn.Parameter], largest_norm: float) -> Tensor:
    """Scale every gradient in place so that the norm of the whole, experts of all ranks included, is at most this.

    Collective. Returns the norm before, a float32 scalar, the same on every rank.
    """
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    dense = [parameter for parameter in with_gradient if _expert_group(parameter) is None]
    squares = _sum_of_squares(dense)
    for name in sorted({name for parameter in with_gradient if (name := _expert_group(parameter))}):
        of_experts = _sum_of_squares([p for p in with_gradient if _expert_group(p) == name])
        dist.all_reduce(of_experts, group=groups._get_expert_parallel_group(name))
        squares = squares + of_experts
    norm = squares.sqrt()
    scale = (largest_norm / (norm + EPSILON)).clamp(max=1.0)
    for parameter in with_gradient:
        assert parameter.grad is not None
        parameter.grad.mul_(scale)
    return norm


def _expert_group(parameter: nn.Parameter) -> str | None:
    """DeepSpeed's name of the group that an expert-parallel parameter is spread over; None for a dense one."""
    return None if getattr(parameter, "allreduce", True) else getattr(parameter, "group_name", None)


def _sum_of_squares(parameters: list[nn.Parameter]) -> Tensor:
    return sum_of_squares(parameter.grad for parameter in parameters if parameter.grad is not None)
