"""Convolutions of stride 1 that keep a map's size, by fewer multiplications where that pays.

On a processor PyTorch multiplies every tap of a kernel. NNPACK, which PyTorch ships, works on transformed tiles
instead: Winograd's for 3x3, Fourier's for 5x5. Its numbers are 1e-5 (3x3) and 1e-7 (5x5) of the largest value apart
from those of the plain way, so training keeps the latter. On a GPU cuDNN makes that choice by itself. NNPACK's threads
are as many as PyTorch had at its first call.

Letters: N images, C channels in, O channels out, H x W positions, k x k kernel.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.model.backends.private_torch import nnpack_convolution

SameConvolution = Callable[[Tensor, Tensor], Tensor]
"""Of a map [N, C, H, W] with a kernel [O, C, k, k], k odd: [N, O, H, W]."""

TRANSFORMED_SIZES = (3, 5)
"""Kernels for which NNPACK has a fitting transform."""
LEAST_POSITIONS = 32 * 32
"""On smaller maps transforming the kernel costs what is saved."""
LEAST_MULTIPLY_ADDS = 100_000_000
"""Of one image; below that, handing over between NNPACK's threads and PyTorch's costs what is saved."""
MOST_THREADS = 4
"""Plain convolutions gain more from threads: 1.9 times as fast with two as with one, transformed ones 1.5 to 1.7."""


def plain_convolution(x_NCHW: Tensor, kernel_OCkk: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """PyTorch's own: [N, O, H, W]."""
    return F.conv2d(x_NCHW, kernel_OCkk, bias_O, padding=kernel_OCkk.shape[-1] // 2)


def fast_convolution(x_NCHW: Tensor, kernel_OCkk: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """The same, transformed where that pays: [N, O, H, W]. Without gradients."""
    if not transforms_pay(x_NCHW, kernel_OCkk):
        return plain_convolution(x_NCHW, kernel_OCkk, bias_O)
    return _transformed_convolution(x_NCHW, kernel_OCkk, bias_O)


@torch.compiler.disable  # which does not know NNPACK: for functions that run as they are among compiled ones
def _transformed_convolution(x_NCHW: Tensor, kernel_OCkk: Tensor, bias_O: Tensor | None) -> Tensor:
    padding = [kernel_OCkk.shape[-1] // 2] * 2
    # One by one: NNPACK's form for batches is slower, and an image's numbers must not depend on those beside it.
    outputs = [nnpack_convolution(x_1CHW, kernel_OCkk, bias_O, padding) for x_1CHW in x_NCHW.split(1)]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def transforms_pay(x_NCHW: Tensor, kernel_OCkk: Tensor) -> bool:
    """Whether NNPACK is there for these tensors, and faster: float32 on a processor, large maps of many channels."""
    positions = x_NCHW.shape[2] * x_NCHW.shape[3]
    return (
        not torch.compiler.is_compiling()  # whose graphs would be cut at each of these
        and x_NCHW.device.type == "cpu"
        and x_NCHW.dtype == kernel_OCkk.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and kernel_OCkk.shape[-1] in TRANSFORMED_SIZES
        and positions >= LEAST_POSITIONS
        and positions * kernel_OCkk.numel() >= LEAST_MULTIPLY_ADDS
        and len(x_NCHW) > 0
        and transforms_are_used()
    )


def transforms_are_used() -> bool:
    """Whether NNPACK is there, and PyTorch has few enough threads for it to be faster."""
    return torch.get_num_threads() <= MOST_THREADS and _nnpack_is_there()


def use_fast_convolutions(network: nn.Module) -> int:
    """Let every convolution of ``network`` that keeps its map's size choose at each call, in place.

    Returns:
        How many there are.
    """
    fitting = [name for name, module in network.named_modules() if _keeps_size(module)]
    for name in fitting:
        convolution = network.get_submodule(name)
        assert isinstance(convolution, nn.Conv2d)
        network.set_submodule(name, FastConv2d(convolution))
    return len(fitting)


class FastConv2d(nn.Module):
    """A convolution that keeps its map's size, on the parameters of the plain one."""

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return fast_convolution(x_NCHW, self.plain.weight, self.plain.bias)


def _keeps_size(module: nn.Module) -> bool:
    return (
        # Of exactly this class: timm's subclasses pad or standardise in their own ways.
        type(module) is nn.Conv2d
        and module.kernel_size in [(size, size) for size in TRANSFORMED_SIZES]
        and module.padding == (module.kernel_size[0] // 2,) * 2
        and module.padding_mode == "zeros"
        and module.stride == module.dilation == (1, 1)
        and module.groups == 1
    )


def _nnpack_is_there() -> bool:
    """Whether PyTorch was built with it and the processor has what it needs; asking prepares it."""
    return torch.backends.nnpack.is_available()
