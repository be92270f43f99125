"""The feature compression module, FCM (METHOD part 4): all levels' features through one narrow bottleneck and back.

A backbone with stages has three levels, at strides 4, 8 and 16. Those of a vision transformer are at one to four times
the finest stride, several of them perhaps at the same.

Letters: B samples, C_l channels of level l, h x w positions of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.model.backbone import STRIDES
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
    """The levels' features -> the shared features f_l at the same strides and channels.

    They are joined at the stride before the coarsest, stride 8 in the paper, or at the finest where all are alike. The
    bottleneck lies at 4 times that. Maps that it can't halve so often are continued by their last row and column, and
    cut again at the end.
    """

    def __init__(self, channels: Sequence[int], settings: ModelSettings, strides: Sequence[int] = STRIDES) -> None:
        """
        Args:
            channels: C_l of each level, the finest first.
            settings: widths and depths.
            strides: of each level, 1, 2 or 4 times the first; they do not fall.
        """
        super().__init__()
        dim, bottleneck_dim, planes = settings.fcm_dim, settings.bottleneck_dim, settings.decoder_planes
        self.scales = [stride // strides[0] for stride in strides]
        join_scale = max(1, self.scales[-1] // 2)
        self.narrow_scale = 4 * join_scale
        self.to_stride_8 = nn.ModuleList(
            [
                UpBasicBlock(level, dim) if scale > join_scale else BasicBlock(level, dim, stride=join_scale // scale)
                for level, scale in zip(channels, self.scales, strict=True)
            ]
        )
        """To the stride at which levels are joined; 8 in the paper."""
        self.inner = nn.ModuleList([InnerBottleneck(dim, size, len(channels)) for size in INNER_KERNEL_SIZES])
        self.outer = nn.Sequential(
            pointwise(dim * len(INNER_KERNEL_SIZES), dim),
            nn.Conv2d(dim, bottleneck_dim, 2, 2, bias=False),
            group_norm(bottleneck_dim),
            nn.ReLU(inplace=True),
        )
        doublings = [
            (coarse // fine).bit_length() - 1 for coarse, fine in pairwise([self.narrow_scale, *self.scales[::-1]])
        ]
        self.decoder = Decoder(bottleneck_dim, planes, settings.decoder_blocks, doublings)
        widths = [stage_planes * BOTTLENECK_EXPANSION for stage_planes in reversed(planes)]
        self.heads = nn.ModuleList(
            [nn.Conv2d(width, level, 1, bias=False) for width, level in zip(widths, channels, strict=True)]
        )

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        sizes = [stage.shape[2:] for stage in stages]
        stages = [self._continued(*stage) for stage in zip(stages, self.scales, strict=True)]
        joined = [block(stage) for block, stage in zip(self.to_stride_8, stages, strict=True)]
        narrow_BCHW = self.outer(torch.cat([inner(joined) for inner in self.inner], dim=1))
        maps = self.decoder(narrow_BCHW)
        outputs = zip(self.heads, maps, sizes, strict=True)
        return [head(x_BCHW[:, :, : size[0], : size[1]]) for head, x_BCHW, size in outputs]

    def _continued(self, stage_BChw: Tensor, scale: int) -> Tensor:
        """To a multiple of the bottleneck's stride."""
        step = self.narrow_scale // scale
        rows, columns = (ceil(side / step) * step - side for side in stage_BChw.shape[2:])
        return F.pad(stage_BChw, (0, columns, 0, rows), mode="replicate") if rows or columns else stage_BChw


class InnerBottleneck(nn.Module):
    """All levels' maps at one stride, each through its own depthwise-separable convolution, joined at twice that."""

    def __init__(self, dim: int, kernel_size: int, levels: int) -> None:
        super().__init__()
        share = dim // levels
        self.branches = nn.ModuleList([DepthwiseSeparable(dim, share, kernel_size) for _ in range(levels)])
        self.join = nn.Sequential(nn.Conv2d(levels * share, dim, 2, 2), group_norm(dim), nn.ReLU(inplace=True))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.join(torch.cat([branch(x_BCHW) for branch, x_BCHW in zip(self.branches, maps, strict=True)], dim=1))


class Decoder(nn.Module):
    """A reversed Wide ResNet, in the paper from stride 32 to 16, 8 and 4; returns the maps finest first."""

    def __init__(
        self, in_channels: int, planes: Sequence[int], blocks: Sequence[int], doublings: Sequence[int] = (1, 1, 1)
    ) -> None:
        """
        Args:
            in_channels: of the bottleneck.
            planes: of each stage.
            blocks: of each stage; not fewer than its doublings, whatever is asked for.
            doublings: how often each stage doubles its map, each time in a block, the first ones.
        """
        super().__init__()
        stages = []
        for stage_planes, count, times in zip(planes, blocks, doublings, strict=True):
            stage = []
            for place in range(max(count, times)):
                stage.append(DecoderBottleneck(in_channels, stage_planes, upsample=place < times))
                in_channels = stage_planes * BOTTLENECK_EXPANSION
            stages.append(nn.Sequential(*stage))
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
