"""The network that UniMMAD's teacher and encoder are copies of: a convolutional one, or a vision transformer's blocks.

Letters: N images, P patches of an image, D channels of a token, C_l channels of level l, g x g patches, h x w positions
of a level, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from unimmad.model.backbone import STRIDES, Backbone, LevelNetwork
from unimmad.model.vit import VisionTransformer

if TYPE_CHECKING:
    from unimmad.config.levels import LevelSettings
    from unimmad.config.method import PositionResampling


class ViTLevels(VisionTransformer, LevelNetwork):
    """Patch tokens of groups of blocks: a group's mean, averaged over squares of patches, is the map of a level.

    Values of both signs, as tokens are: no ReLU follows. Tokens before the patches go no further.
    """

    def __init__(
        self,
        name: str,
        groups: Sequence[Sequence[int]],
        pools: Sequence[int],
        image_size: int,
        position_resampling: PositionResampling,
    ) -> None:
        """Build with random weights.

        Args:
            name: one of timm's networks.
            groups: of each level its blocks, counted from 0.
            pools: of each level the side of its squares of patches; they do not fall.
            image_size: height and width of every image.
            position_resampling: as ``VisionTransformer``'s.

        Raises:
            ValueError: as ``VisionTransformer``, or a level's squares do not tile the patches.
        """
        super().__init__(name, sorted({block for group in groups for block in group}), image_size, position_resampling)
        self.groups = tuple(tuple(self.blocks.index(block) for block in group) for group in groups)
        self.pools = tuple(pools)
        patch = image_size // self.grid
        if self.grid % self.pools[-1]:
            step = patch * self.pools[-1]
            below = image_size // step * step
            sizes = [str(size) for size in (below, below + step) if size]
            raise ValueError(
                f"model.level_pools: {self.pools[-1]} does not divide the {self.grid} x {self.grid} patches of an "
                f"image of {image_size} pixels; the nearest model.image_size that fit: {' and '.join(sizes)}"
            )
        self.channels = (self.dim,) * len(groups)
        self.strides = tuple(patch * pool for pool in pools)

    def forward(self, images_NCHW: Tensor) -> list[Tensor]:
        outputs = self.tokens(images_NCHW, with_prefix=False)
        maps = []
        for group, pool in zip(self.groups, self.pools, strict=True):
            mean_NPD = torch.stack([outputs[place] for place in group]).mean(dim=0)
            map_NDgg = self.as_map(mean_NPD)
            maps.append(map_NDgg if pool == 1 else F.avg_pool2d(map_NDgg, pool))
        return maps


def new_level_network(settings: LevelSettings, without_rest: bool = False) -> LevelNetwork:
    """With random weights.

    Args:
        settings: which network, and what its levels are.
        without_rest: as ``Backbone``'s.

    Raises:
        ValueError: there is no such network, or it does not fit the settings.
    """
    if settings.level_blocks:
        return ViTLevels(
            settings.backbone,
            settings.level_blocks,
            settings.pools,
            settings.image_size,
            settings.position_resampling,
        )
    try:
        return Backbone(settings.backbone, without_rest=without_rest)
    except ValueError as error:
        raise ValueError(f"{error} (of a vision transformer say the blocks, by model.level_blocks)") from None


def level_strides(settings: LevelSettings) -> tuple[int, ...]:
    """In pixels, of each level, the finest first.

    Raises:
        ValueError: as ``new_level_network``.
    """
    if not settings.level_blocks:
        return STRIDES
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return new_level_network(settings).strides
