"""The feature compression module, FCM (METHOD part 4): three stages of features through one narrow bottleneck and back.

Letters: B samples, C_l channels of level l, h x w positions at strides 4, 8, 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from unimmad.model.blocks import (
    BOTTLENECK_EXPANSION,
    BasicBlock,
    DecoderBottleneck,
    DepthwiseSeparable,
    UpBasicBlock,
    group_norm,
    pointwise,
)

if TYPE_CHECKING:
    from unimmad.config import ModelSettings

INNER_KERNEL_SIZES = (1, 3, 5)


class FeatureCompression(nn.Module):
    """Stages at strides 4, 8, 16 -> the shared features f_l at the same strides and channels."""

    def __init__(self, channels: Sequence[int], settings: ModelSettings) -> None:
        super().__init__()
        dim, bottleneck_dim, planes = settings.fcm_dim, settings.bottleneck_dim, settings.decoder_planes
        self.to_stride_8 = nn.ModuleList(
            [
                BasicBlock(channels[0], dim, stride=2),
                BasicBlock(channels[1], dim, stride=1),
                UpBasicBlock(channels[2], dim),
            ]
        )
        self.inner = nn.ModuleList([InnerBottleneck(dim, size) for size in INNER_KERNEL_SIZES])
        self.outer = nn.Sequential(
            pointwise(dim * len(INNER_KERNEL_SIZES), dim),
            nn.Conv2d(dim, bottleneck_dim, 2, 2, bias=False),
            group_norm(bottleneck_dim),
            nn.ReLU(inplace=True),
        )
        self.decoder = Decoder(bottleneck_dim, planes, settings.decoder_blocks)
        widths = [stage_planes * BOTTLENECK_EXPANSION for stage_planes in reversed(planes)]
        self.heads = nn.ModuleList(
            [nn.Conv2d(width, level, 1, bias=False) for width, level in zip(widths, channels, strict=True)]
        )

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        joined = [block(stage) for block, stage in zip(self.to_stride_8, stages, strict=True)]
        narrow_BCHW = self.outer(torch.cat([inner(joined) for inner in self.inner], dim=1))
        maps = self.decoder(narrow_BCHW)
        return [head(x_BCHW) for head, x_BCHW in zip(self.heads, maps, strict=True)]


class InnerBottleneck(nn.Module):
    """Three maps at stride 8, each through its own depthwise-separable convolution, joined at stride 16."""

    def __init__(self, dim: int, kernel_size: int) -> None:
        super().__init__()
        third = dim // 3
        self.branches = nn.ModuleList([DepthwiseSeparable(dim, third, kernel_size) for _ in range(3)])
        self.join = nn.Sequential(nn.Conv2d(3 * third, dim, 2, 2), group_norm(dim), nn.ReLU(inplace=True))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.join(torch.cat([branch(x_BCHW) for branch, x_BCHW in zip(self.branches, maps, strict=True)], dim=1))


class Decoder(nn.Module):
    """A reversed Wide ResNet: stride 32 to 16, 8 and 4; returns the maps finest first."""

    def __init__(self, in_channels: int, planes: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        stages = []
        for stage_planes, count in zip(planes, blocks, strict=True):
            out_channels = stage_planes * BOTTLENECK_EXPANSION
            first = DecoderBottleneck(in_channels, stage_planes, upsample=True)
            rest = [DecoderBottleneck(out_channels, stage_planes, upsample=False) for _ in range(count - 1)]
            stages.append(nn.Sequential(first, *rest))
            in_channels = out_channels
        self.stages = nn.ModuleList(stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
            maps.append(x_BCHW)
        return maps[::-1]
