"""Memory and operations of a piece of work, and the machine's rate of matrix products to hold them against."""

from __future__ import annotations

import platform
import resource
import sys
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from unimmad.timing import Work

MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}
"""Side of the square matrices whose product shows what the machine can do."""
PRODUCTS = 8
"""Of one turn: short turns would meet other moments of a busy machine than the works beside them."""


def machine_name(device: torch.device) -> str:
    """Of the GPU, or of the processor where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        described = ""
    names = [line.partition(":")[2].strip() for line in described.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def peak_bytes(device: torch.device) -> int:
    """Since the process began. GPU: allocated by PyTorch. CPU: the process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def counted(work: Work) -> tuple[Tensor, int]:
    """Do ``work`` once; what came of it, and its floating-point operations in convolutions and matrix products.

    A transformed convolution counts as the plain one that it stands for.
    """
    counter = FlopCounterMode(
        display=False,
        custom_mapping={
            torch.ops.aten.convolution_backward: convolution_backward_flops,
            torch.ops.aten._nnpack_spatial_convolution: transformed_convolution_flops,
        },
    )
    # Uncompiled: a function met inside a counter is never compiled again, and what is compiled hides operations.
    with torch.compiler.set_stance("force_eager"), counter:
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


def matrix_product(dtype: torch.dtype, device: torch.device) -> tuple[Work, int]:
    """Some large square matrix products and their operations; with TF32 where the process allows it."""
    size = MATRIX_SIZE.get(device.type, MATRIX_SIZE["cpu"])
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def multiply() -> Tensor:
        for _ in range(PRODUCTS):
            result = torch.mm(left, right)
        return result

    return multiply, PRODUCTS * 2 * size**3
