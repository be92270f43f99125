from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from unimmad.model.backends import private_torch


@pytest.mark.skipif(not torch.backends.nnpack.is_available(), reason="this PyTorch or processor has no NNPACK")
def test_nnpacks_convolution_is_a_convolution():
    broken = "PyTorch changed _nnpack_spatial_convolution: model/backends/convolution.py is wrong"
    x_1CHW, kernel_OCkk, bias_O = torch.randn(1, 4, 8, 8), torch.randn(6, 4, 3, 3), torch.randn(6)
    expected = F.conv2d(x_1CHW, kernel_OCkk, bias_O, padding=1)
    for ours in (private_torch.nnpack_convolution, private_torch.NNPACK_CONVOLUTION):
        assert torch.allclose(ours(x_1CHW, kernel_OCkk, bias_O, [1, 1]), expected, atol=1e-4), broken


def test_fake_tensors_have_sizes_and_take_no_memory():
    with private_torch.FakeTensorMode():
        product = torch.ones(10**9, 8) @ torch.ones(8, 3)
    broken = "PyTorch changed FakeTensorMode: tools/benchmark.py fit can't simulate steps"
    assert (product.shape, product.device.type) == ((10**9, 3), "cpu"), broken


def test_a_dispatch_mode_sees_operations():
    seen = []

    class Watch(private_torch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watch():
        torch.ones(2) + 1
    broken = "PyTorch changed TorchDispatchMode: tools/benchmark.py fit counts no memory"
    assert torch.ops.aten.add.Tensor in seen, broken


def test_leaves_of_a_nested_result():
    broken = "PyTorch changed tree_leaves: tools/benchmark.py fit misses tensors"
    assert private_torch.tree_leaves((1, [2, {"x": 3}])) == [1, 2, 3], broken


@pytest.mark.skipif(find_spec("triton") is not None, reason="Triton is installed here")
def test_triton_is_missed_where_it_is_not_installed():
    broken = "PyTorch changed has_triton: training.compile is not checked before training (model/backends/execution.py)"
    assert private_torch.has_triton() is False, broken


def test_a_member_of_a_copy_is_replaced_there_alone():
    module = nn.Sequential(nn.BatchNorm2d(2))
    module.register_buffer("buffer", torch.zeros(1))
    module.register_parameter("parameter", nn.Parameter(torch.zeros(1)))
    before = dict(module.named_modules()), dict(module.named_parameters()), dict(module.named_buffers())
    copied = private_torch.with_own_members(module)
    broken = "PyTorch changed how a module keeps its members: folding BatchNorm (model/folding.py) changes the original"
    assert [dict(copied.named_parameters()), dict(copied.named_buffers())] == [*before[1:]], broken
    copied.set_submodule("0", nn.Identity())
    copied.buffer = torch.ones(1)
    copied.parameter = nn.Parameter(torch.ones(1))
    assert [*copied.children()] != [*module.children()], broken
    assert (dict(module.named_modules()), dict(module.named_parameters()), dict(module.named_buffers())) == before, (
        broken
    )


def test_views_have_the_address_of_their_memory():
    broken = "PyTorch changed storages: tools/benchmark.py fit counts views twice"
    for mode in (private_torch.FakeTensorMode, torch.no_grad):
        with mode():
            whole, other = torch.ones(4), torch.ones(4)
            addresses = [private_torch.storage_address(x.untyped_storage()) for x in (whole, whole[1:], other)]
        assert addresses[0] == addresses[1] != addresses[2], broken
