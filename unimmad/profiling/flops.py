"""Counts floating-point operations, 2 for each multiply-add, of the convolutions and matrix products that are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

from unimmad.model.backends.private_torch import NNPACK_CONVOLUTION

T = TypeVar("T")


@contextmanager
def counting_operations() -> Iterator[FlopCounterMode]:
    """What is done inside, backward passes too, is in the counter's ``get_total_flops()`` afterwards.

    A transformed convolution counts as the plain one that it stands for.
    """
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.aten.convolution_backward: convolution_backward_flops,
            NNPACK_CONVOLUTION: transformed_convolution_flops,
        },
    )
    # Uncompiled: a function met inside a counter is never compiled again, and what is compiled hides operations.
    with torch.compiler.set_stance("force_eager"), counter:
        yield counter


def counted(work: Callable[[], T]) -> tuple[T, int]:
    """Do ``work`` once; what came of it, and its floating-point operations."""
    with counting_operations() as counter:
        outcome = work()
    return outcome, counter.get_total_flops()


def transformed_convolution_flops(
    _input_shape: tuple[int, ...], weight_shape: tuple[int, ...], *_: Any, out_shape: tuple[int, ...], **__: Any
) -> int:
    """Of the plain convolution, whose every output needs the weights of its channel."""
    return 2 * prod(out_shape) * prod(weight_shape[1:])


def convolution_backward_flops(
    output_gradient_shape: tuple[int, ...],
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    _bias: Any,
    _stride: Any,
    _padding: Any,
    _dilation: Any,
    transposed: bool,
    _output_padding: Any,
    _groups: int,
    output_mask: tuple[bool, bool, bool],
    **_: Any,
) -> int:
    """Each gradient costs what the forward pass did; torch's own count of grouped ones is too high by the groups."""
    positions = prod(input_shape[2:] if transposed else output_gradient_shape[2:])
    forward = 2 * input_shape[0] * positions * prod(weight_shape)
    return forward * (int(output_mask[0]) + int(output_mask[1]))
