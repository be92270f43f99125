"""All that is used of PyTorch though it is not part of its public API.

A new version may move any of it; ``tests/model/test_private_torch.py`` has a test for each that says what is then
broken. DeepSpeed's is in ``parallel/private_deepspeed.py`` and submitit's in ``launching/private_submitit.py``: a file
a library, since the model imports nothing of the package, and neither evaluation nor prediction needs those two.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils._triton import has_triton

__all__ = [
    "NNPACK_CONVOLUTION",
    "FakeTensorMode",
    "TorchDispatchMode",
    "has_triton",
    "nnpack_convolution",
    "storage_address",
    "tree_leaves",
    "with_own_members",
]

NNPACK_CONVOLUTION = torch.ops.aten._nnpack_spatial_convolution
"""The operation that ``nnpack_convolution`` is to profilers and counters."""

Module = TypeVar("Module", bound=nn.Module)


def nnpack_convolution(x_1CHW: Tensor, kernel_OCkk: Tensor, bias_O: Tensor | None, padding: list[int]) -> Tensor:
    """By NNPACK, to which PyTorch's own choice never falls for one image: [1, O, H, W]."""
    return torch._nnpack_spatial_convolution(x_1CHW, kernel_OCkk, bias_O, padding)


def with_own_members(module: Module) -> Module:
    """A shallow copy that shares parameters, buffers and submodules, and in which each can be replaced.

    A plain shallow copy shares the tables of them, so that replacing one would replace it in the original, too.
    """
    copied = copy.copy(module)
    copied._parameters = module._parameters.copy()
    copied._buffers = module._buffers.copy()
    copied._modules = module._modules.copy()
    return copied


def storage_address(storage: torch.UntypedStorage) -> int:
    """The same for all views of one memory, also of fake tensors, which have no data."""
    return int(storage._cdata)
