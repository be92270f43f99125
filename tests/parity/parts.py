"""The reference computed part by part (halves, thirds, quarters, eighths): the same mathematics, other rounding.

How far it is from the reference in one piece says how much of a difference between two ways is rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_PER_SAMPLE = (torch.conv2d, F.conv2d, torch.conv_transpose2d, F.conv_transpose2d, F.linear, F.group_norm)


class InParts(TorchFunctionMode):
    """Inside, every convolution, linear layer and normalisation works on the parts of its batch in turn."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and kwargs.get("training", len(args) > 5 and args[5]):
            return _batch_norm(self.parts, *args, **kwargs)
        if func in _PER_SAMPLE and len(args[0]) > 1:
            parts = args[0].tensor_split(min(self.parts, len(args[0])))
            return torch.cat([func(part, *args[1:], **kwargs) for part in parts])
        return func(*args, **kwargs)


def _batch_norm(
    number_of_parts: int,
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """Statistics of the whole batch from sums over its parts, first the mean, then the variance about it."""
    assert training
    parts = input.float().tensor_split(min(number_of_parts, len(input)))
    count = input.numel() // input.shape[1]
    mean_C = sum(part.sum(dim=(0, 2, 3)) for part in parts) / count
    centred = [part - mean_C[:, None, None] for part in parts]
    variance_C = sum(part.square().sum(dim=(0, 2, 3)) for part in centred) / count
    with torch.no_grad():
        running_mean.lerp_(mean_C, momentum)
        running_var.lerp_(variance_C * count / (count - 1), momentum)
    scale_C = weight * torch.rsqrt(variance_C + eps)
    return torch.cat([part * scale_C[:, None, None] + bias[:, None, None] for part in centred]).to(input.dtype)
