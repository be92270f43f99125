from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unimmad.model.backbone import Backbone
from unimmad.model.blocks import DecoderBottleneck
from unimmad.model.folding import fold_batchnorm


def lived_in(network: nn.Module) -> nn.Module:
    """With BatchNorm statistics and scales as after training."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.2), (module.running_var, 0.5), (module.weight.data, 0.5)):
                tensor.copy_(low + torch.rand(tensor.shape, generator=generator))
            module.bias.data.normal_(generator=generator)
    return network.eval()


def batchnorms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    ("network", "shape"),
    [(Backbone("resnet18"), (1, 3, 64, 64)), (DecoderBottleneck(8, 4, upsample=True), (2, 8, 5, 6))],
    ids=["backbone", "transposed"],
)
@torch.no_grad()
def test_a_folded_network_gives_the_same_numbers_without_batchnorm(network, shape):
    lived_in(network).double()
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before, layers = network(images), batchnorms(network)
    assert fold_batchnorm(network) == layers > 0
    assert batchnorms(network) == 0
    torch.testing.assert_close(network(images), before, rtol=1e-9, atol=1e-9)


class Twice(nn.Module):
    """Its convolution's output is also used bare."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.convolution(x)
        return y + self.norm(y)


class Untraceable(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolution(x)) if x.sum() > 0 else x


@pytest.mark.parametrize("network", [Twice(), Untraceable()], ids=["used twice", "cannot be traced"])
@torch.no_grad()
def test_what_cannot_be_folded_stays_as_it_is(network):
    lived_in(network)
    x = torch.rand(1, 3, 4, 4)
    before = network(x)
    assert fold_batchnorm(network) == 0
    torch.testing.assert_close(network(x), before, rtol=0, atol=0)
