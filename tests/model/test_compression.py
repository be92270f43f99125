"""FeatureCompression against METHOD part 4, written out with torch's functions and the modules' parameters."""

from __future__ import annotations

import math

import pytest
import torch
from naive_moe import randomise
from torch import nn
from torch.nn import functional as F

from unimmad.config import ModelSettings
from unimmad.model.backbone import STRIDES
from unimmad.model.blocks import group_norm
from unimmad.model.compression import Decoder, FeatureCompression

CHANNELS, DIM, BOTTLENECK, PLANES, BLOCKS = (6, 10, 14), 12, 16, (5, 4, 3), (2, 1, 3)
SETTINGS = ModelSettings(fcm_dim=DIM, bottleneck_dim=BOTTLENECK, decoder_planes=PLANES, decoder_blocks=BLOCKS)


def make(training: bool, strides: tuple[int, ...] = STRIDES) -> FeatureCompression:
    count = len(strides)
    sizes = {"decoder_planes": PLANES[:count], "decoder_blocks": BLOCKS[:count]}
    module = FeatureCompression(CHANNELS[:count], SETTINGS.model_copy(update=sizes), strides)
    randomise(module, seed=2)
    return module.train(training)


def stages(batch: int = 2, size: int = 64, strides: tuple[int, ...] = STRIDES) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(batch, c, size // s, size // s, generator=generator)
        for c, s in zip(CHANNELS, strides, strict=False)
    ]


def norm(x, p, name, training):
    """BatchNorm: of the batch in training, of the running statistics in evaluation."""
    mean, variance = (None, None) if training else (p[f"{name}.running_mean"], p[f"{name}.running_var"])
    return F.batch_norm(x, mean, variance, p[f"{name}.weight"], p[f"{name}.bias"], training)


def groups(x, p, name):
    channels = x.shape[1]
    count = max(g for g in (32, 16, 8, 4, 2, 1) if channels % g == 0)
    return F.group_norm(x, count, p[f"{name}.weight"], p[f"{name}.bias"])


def to_join(x, p, number, training, stride):
    """To the grid at which levels are joined, ``stride`` times as coarse as this level's; 0.5 is twice as fine."""
    name = f"to_stride_8.{number}"
    if stride == 0.5:
        y = F.conv_transpose2d(x, p[f"{name}.conv1.weight"], stride=2)
        skip = F.conv_transpose2d(x, p[f"{name}.skip.weight"], p[f"{name}.skip.bias"], stride=2, padding=1)
    else:
        stride = int(stride)
        y = F.conv2d(x, p[f"{name}.conv1.weight"], stride=stride, padding=1)
        skip = F.conv2d(x, p[f"{name}.skip.weight"], stride=stride)
    y = F.relu(norm(y, p, f"{name}.norm1", training))
    y = norm(F.conv2d(y, p[f"{name}.conv2.weight"], padding=1), p, f"{name}.norm2", training)
    return F.relu(y + skip)


def inner(maps, p, number):
    size = (1, 3, 5)[number]
    parts = []
    for branch, x in enumerate(maps):
        name = f"inner.{number}.branches.{branch}"
        y = F.conv2d(x, p[f"{name}.depthwise.weight"], padding=size // 2, groups=x.shape[1])
        y = F.conv2d(y, p[f"{name}.pointwise.0.weight"])
        parts.append(F.relu(groups(y, p, f"{name}.pointwise.1")))
    name = f"inner.{number}.join"
    y = F.conv2d(torch.cat(parts, dim=1), p[f"{name}.0.weight"], p[f"{name}.0.bias"], stride=2)
    return F.relu(groups(y, p, f"{name}.1"))


def bottleneck(x, p, name, training, doubles):
    y = F.relu(norm(F.conv2d(x, p[f"{name}.conv1.weight"]), p, f"{name}.norm1", training))
    middle = p[f"{name}.conv2.weight"]
    y = F.conv_transpose2d(y, middle, stride=2) if doubles else F.conv2d(y, middle, padding=1)
    y = F.relu(norm(y, p, f"{name}.norm2", training))
    y = norm(F.conv2d(y, p[f"{name}.conv3.weight"]), p, f"{name}.norm3", training)
    if f"{name}.skip.0.weight" in p:
        weight = p[f"{name}.skip.0.weight"]
        x = F.conv_transpose2d(x, weight, stride=2) if doubles else F.conv2d(x, weight)
        x = norm(x, p, f"{name}.skip.1", training)
    return F.relu(x + y)


def by_definition(module, given, training, strides):
    """For strides (4, 8, 16) METHOD's."""
    p = module.state_dict()
    sides, finest, coarsest = [x.shape[-1] for x in given], strides[0], strides[-1]
    join = max(finest, coarsest // 2)
    covered = math.ceil(sides[0] * finest / (4 * join)) * 4 * join
    given = [continued(x, covered // stride) for x, stride in zip(given, strides, strict=True)]
    maps = [
        to_join(x, p, number, training, join / stride)
        for number, (x, stride) in enumerate(zip(given, strides, strict=True))
    ]
    x = torch.cat([inner(maps, p, number) for number in range(3)], dim=1)
    x = F.relu(groups(F.conv2d(x, p["outer.0.0.weight"]), p, "outer.0.1"))
    x = F.relu(groups(F.conv2d(x, p["outer.1.weight"], stride=2), p, "outer.2"))
    levels = []
    for stage, (stride, count) in enumerate(zip(reversed(strides), BLOCKS, strict=False)):
        wanted, block = covered // stride, 0
        while block < count or x.shape[-1] < wanted:
            x = bottleneck(x, p, f"decoder.stages.{stage}.{block}", training, doubles=x.shape[-1] < wanted)
            block += 1
        levels.append(x)
    heads = [F.conv2d(x, p[f"heads.{level}.weight"]) for level, x in enumerate(reversed(levels))]
    return [x[..., :side, :side] for x, side in zip(heads, sides, strict=True)]


def continued(x, side):
    """By its last row and column, to ``side`` x ``side``."""
    places = torch.arange(side).clamp_max(x.shape[-1] - 1)
    return x[..., places[:, None], places]


@pytest.mark.parametrize(
    ("strides", "size"), [(STRIDES, 64), ((14, 14, 14), 126), ((16, 32), 160), ((8, 8), 64), ((14,), 42), ((4, 16), 80)]
)
@pytest.mark.parametrize("training", [False, True])
def test_the_module_is_its_definition(training, strides, size):
    module, given = make(training, strides), stages(2, size, strides)
    expected = by_definition(module, given, training, strides)
    for ours, theirs, x in zip(module(given), expected, given, strict=True):
        assert ours.shape == x.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_levels_keep_the_backbones_strides_and_channels():
    shapes = [tuple(x.shape) for x in make(training=False)(stages(batch=3, size=96))]
    assert shapes == [(3, 6, 24, 24), (3, 10, 12, 12), (3, 14, 6, 6)]


def test_every_parameter_has_a_gradient():
    module = make(training=True)
    sum(x.pow(3).sum() for x in module(stages())).backward()
    without = [name for name, parameter in module.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert without == []


def test_convolutions_of_a_new_decoder_are_kaiming_fan_out_and_transposed_ones_torchs_own():
    torch.manual_seed(0)
    decoder = Decoder(128, (32, 16, 16), (2, 2, 2))
    for module in decoder.modules():
        if isinstance(module, nn.ConvTranspose2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert module.weight.abs().max() <= bound
        elif isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.weight[0, 0].numel()
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)


@pytest.mark.parametrize(
    ("channels", "expected"), [(256, 32), (170, 2), (512, 32), (12, 4), (8, 8), (7, 1), (48, 16), (96, 32)]
)
def test_group_norm_takes_the_largest_number_of_groups_that_divides(channels, expected):
    assert group_norm(channels).num_groups == expected
