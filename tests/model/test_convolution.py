from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.model.backends import convolution
from unimmad.model.backends.convolution import (
    FastConv2d,
    _transformed_convolution,
    fast_convolution,
    transforms_pay,
    use_fast_convolutions,
)

needs_nnpack = pytest.mark.skipif(
    not torch.backends.nnpack.is_available(), reason="this PyTorch or processor has no NNPACK"
)
LARGEST_ERROR = {3: 3e-5, 5: 1e-6}
"""Of the largest value."""


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def large(size: int, channels: int = 64) -> tuple[Tensor, Tensor]:
    """Two maps and a kernel for which transforming pays; the kernel is a view of a larger one."""
    return numbers(2, channels, 50, 61), numbers(64, 2 * channels, size, size, seed=1).chunk(2, dim=1)[1]


@needs_nnpack
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("size", [3, 5])
@torch.no_grad()
def test_transformed_convolutions_give_the_plain_ones_numbers(size, with_bias):
    x_NCHW, kernel_OCkk = large(size)
    bias_O = numbers(64, seed=2) if with_bias else None
    exact = F.conv2d(x_NCHW.double(), kernel_OCkk.double(), None if bias_O is None else bias_O.double(), padding="same")
    assert transforms_pay(x_NCHW, kernel_OCkk)
    ours = fast_convolution(x_NCHW, kernel_OCkk, bias_O)
    assert ours.shape == exact.shape
    assert (ours - exact).abs().max() <= LARGEST_ERROR[size] * exact.abs().max()


@needs_nnpack
@torch.no_grad()
def test_a_transformed_convolution_inside_compiled_code_runs_as_it_is():
    """PyTorch would trace NNPACK's function, with tensors that have no numbers, on which it fails."""
    x_NCHW, kernel_OCkk = large(3)

    def compute() -> Tensor:
        return _transformed_convolution(x_NCHW, kernel_OCkk, None) + 1

    torch.testing.assert_close(torch.compile(compute, backend="eager")(), compute(), rtol=0, atol=0)


@needs_nnpack
@pytest.mark.parametrize("size", [3, 5])
@torch.no_grad()
def test_an_images_numbers_do_not_hang_on_its_batch(size):
    x_NCHW, kernel_OCkk = large(size)
    together = fast_convolution(x_NCHW, kernel_OCkk)
    for x_1CHW, expected_1OHW in zip(x_NCHW.split(1), together.split(1), strict=True):
        assert torch.equal(fast_convolution(x_1CHW, kernel_OCkk), expected_1OHW)


def plain_cases() -> dict[str, tuple[Tensor, Tensor]]:
    x_NCHW, kernel_OCkk = large(3)
    return {
        "1x1": (x_NCHW, numbers(576, 64, 1, 1)),
        "7x7": (x_NCHW, numbers(64, 64, 7, 7)),
        "a small map": (x_NCHW[..., :31, :33], numbers(256, 64, 3, 3)),
        "few channels": (x_NCHW[:, :16], kernel_OCkk[:, :16]),
        "float64": (x_NCHW.double(), kernel_OCkk.double()),
        "bfloat16": (x_NCHW.bfloat16(), kernel_OCkk.bfloat16()),
        "no image": (x_NCHW[:0], kernel_OCkk),
    }


@pytest.mark.parametrize("name", plain_cases())
@torch.no_grad()
def test_where_it_does_not_pay_the_plain_way_is_taken(name):
    x_NCHW, kernel_OCkk = plain_cases()[name]
    assert not transforms_pay(x_NCHW, kernel_OCkk)
    assert torch.equal(fast_convolution(x_NCHW, kernel_OCkk), F.conv2d(x_NCHW, kernel_OCkk, padding="same"))


@torch.no_grad()
def test_under_autocast_the_plain_way_is_taken():
    x_NCHW, kernel_OCkk = large(3)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast_convolution(x_NCHW, kernel_OCkk).dtype == torch.bfloat16


@torch.no_grad()
def test_without_nnpack_the_plain_way_is_taken(monkeypatch):
    monkeypatch.setattr(convolution, "_nnpack_is_there", lambda: False)
    x_NCHW, kernel_OCkk = large(5)
    assert torch.equal(fast_convolution(x_NCHW, kernel_OCkk), F.conv2d(x_NCHW, kernel_OCkk, padding="same"))


@torch.no_grad()
def test_with_many_threads_the_plain_way_is_taken(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: convolution.MOST_THREADS + 1)
    assert not transforms_pay(*large(5))


class OwnConv2d(nn.Conv2d):
    """One that may do anything."""


@torch.no_grad()
def test_only_convolutions_that_keep_the_maps_size_are_replaced():
    kept = [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, (3, 5), padding=(1, 2)),
        OwnConv2d(4, 4, 3, padding=1),
    ]
    network = nn.Sequential(*kept, nn.Conv2d(4, 4, 3, padding=1), nn.Sequential(nn.Conv2d(4, 4, 5, padding=2)))
    x_NCHW = numbers(1, 4, 12, 12)
    before = network(x_NCHW)
    assert use_fast_convolutions(network) == 2
    assert [name for name, module in network.named_modules() if isinstance(module, FastConv2d)] == ["8", "9.0"]
    assert list(network[:8]) == kept
    assert torch.equal(network(x_NCHW), before)
