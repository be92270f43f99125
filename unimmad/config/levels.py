"""Which levels of a frozen network's features a method looks at: what UniMMAD and ``level_search`` share."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from unimmad.config.fields import NotNegative
from unimmad.config.method import BackboneKind, MethodSettings, PositionResampling, TimmName

CONVOLUTIONAL_LEVELS = 3
"""Of a network with stages, at strides 4, 8 and 16."""
MOST_LEVELS = 8

BlockGroup = Annotated[tuple[NotNegative, ...], Field(min_length=1, max_length=256)]


class LevelSettings(MethodSettings):
    """The network, and what its levels are made of."""

    backbone: TimmName = "wide_resnet50_2.tv2_in1k"
    """A network of timm's own list: one whose features_only form has strides 4, 8 and 16, or, with ``level_blocks``,
    any plain vision transformer."""
    level_blocks: Annotated[tuple[BlockGroup, ...], Field(max_length=MOST_LEVELS)] = ()
    """With a vision transformer: of each level the blocks, counted from 0, whose patch tokens are averaged, such as
    ``[[2, 3, 4, 5], [6, 7, 8, 9]]``. Empty: the levels are the maps at strides 4, 8 and 16."""
    level_pools: tuple[Literal[1, 2, 4], ...] = ()
    """With ``level_blocks``: the side of the squares of patches that each level averages, so that its stride is so many
    patches, such as ``[1, 2]``; must not fall from level to level. Empty: 1 everywhere."""
    position_resampling: PositionResampling = "timm"
    """How a vision transformer's position embeddings are brought to the image's grid: as ``timm`` does, or ``dinov2``
    as that backbone's authors do."""

    @property
    def backbone_kind(self) -> BackboneKind:
        return "transformer" if self.level_blocks else "convolutional"

    @property
    def level_count(self) -> int:
        """How many levels there are."""
        return len(self.level_blocks) or CONVOLUTIONAL_LEVELS

    @property
    def pools(self) -> tuple[int, ...]:
        """``level_pools``, written out."""
        return self.level_pools or (1,) * len(self.level_blocks)

    @model_validator(mode="after")
    def _check_levels(self) -> Self:
        for group in self.level_blocks:
            if list(group) != sorted(set(group)):
                raise ValueError(f"level_blocks: blocks {list(group)} of a level must ascend")
        if self.level_pools and not self.level_blocks:
            raise ValueError("level_pools are for a vision transformer: set level_blocks, too")
        if len(self.pools) != len(self.level_blocks):
            raise ValueError(
                f"level_pools {list(self.level_pools)} must be one number for each of the {len(self.level_blocks)} "
                "groups in level_blocks"
            )
        if list(self.pools) != sorted(self.pools):
            raise ValueError(f"level_pools {list(self.level_pools)} must not fall: the finest level is the first")
        return self
