"""What Dinomaly and INP-Former share: tokens of groups of a vision transformer's blocks, and their reconstruction.

A decoder has one block for each block of the teacher that is looked at (a target). Its outputs are taken in reverse, so
that the last one stands for the first target; both sides are then averaged over groups of targets.

Letters: T tokens (sample, modality; an image here), P patches of an image, D channels, g x g patches, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.config.fields import NotNegative, Positive
from unimmad.config.method import BackboneKind, MethodSettings, PositionResampling, TimmName
from unimmad.methods.frozen_teacher import FrozenTeacher
from unimmad.methods.single_image import Compared, SingleImageMethod
from unimmad.model.vit import FrozenViT

DECODER_NORM_EPS = 1e-8
MLP_RATIO = 4

Group = Annotated[tuple[NotNegative, ...], Field(min_length=1)]


class TokenGroupSettings(MethodSettings):
    """Which tokens are compared."""

    image_size: Positive = 392
    """Height and width of every image; a multiple of the backbone's patches."""
    backbone: TimmName = "vit_base_patch14_reg4_dinov2.lvd142m"
    """A vision transformer of timm's own list."""
    blocks: Annotated[tuple[NotNegative, ...], Field(min_length=1)] = (2, 3, 4, 5, 6, 7, 8, 9)
    """The targets: blocks of the backbone, counted from 0, ascending. The decoder has as many blocks."""
    groups: Annotated[tuple[Group, ...], Field(min_length=1)] = ((0, 1, 2, 3), (4, 5, 6, 7))
    """Places in ``blocks``, counted from 0, whose outputs are averaged before they are compared."""
    position_resampling: PositionResampling = "dinov2"
    """How the backbone's position embeddings are brought to the image's grid: ``dinov2`` as its authors do, or
    ``timm``."""

    @property
    def backbone_kind(self) -> BackboneKind:
        return "transformer"

    @model_validator(mode="after")
    def _check_groups(self) -> TokenGroupSettings:
        if list(self.blocks) != sorted(set(self.blocks)):
            raise ValueError(f"blocks {self.blocks} must ascend")
        grouped = {place for group in self.groups for place in group}
        if grouped != set(range(len(self.blocks))):
            raise ValueError(
                f"groups {self.groups} must have every place in blocks, 0 to {len(self.blocks) - 1}, and no others"
            )
        return self


@dataclass(frozen=True)
class GroupedFeatures:
    """Means over groups of blocks, [T, D, g, g] each."""

    teacher: list[Tensor]
    decoder: list[Tensor]


class TokenGroupMethod(FrozenTeacher, SingleImageMethod[Compared]):
    """A frozen vision transformer and the groups of its blocks."""

    settings: TokenGroupSettings
    teacher: FrozenViT

    def __init__(self, settings: TokenGroupSettings) -> None:
        super().__init__()
        self.settings = settings
        self.groups = settings.groups
        self.teacher = FrozenViT(settings.backbone, settings.blocks, settings.image_size, settings.position_resampling)

    def frozen_features(self) -> tuple[Any, str] | None:
        return self.teacher, "features"

    def group_means(self, patches: Sequence[Tensor]) -> list[Tensor]:
        """One output of each target, [T, P, D], to one of each group, [T, D, g, g]."""
        means = [torch.stack([patches[place] for place in group]).mean(dim=0) for group in self.groups]
        return [self.teacher.as_map(mean_TPD) for mean_TPD in means]


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim * MLP_RATIO)
        self.fc2 = nn.Linear(dim * MLP_RATIO, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(tokens)))


def split_heads(tokens_TPD: Tensor, heads: int) -> Tensor:
    """[T, P, D] to [T, heads, P, D / heads]."""
    return tokens_TPD.unflatten(2, (heads, -1)).transpose(1, 2)


def join_heads(tokens_ThPd: Tensor) -> Tensor:
    """[T, heads, P, D / heads] to [T, P, D]."""
    return tokens_ThPd.transpose(1, 2).flatten(2)


def with_gradient_times(decoded_TDgg: Tensor, factor_Tgg: Tensor) -> Tensor:
    """The same values; the gradient that arrives at them is multiplied place by place on its way back."""
    if not decoded_TDgg.requires_grad:
        return decoded_TDgg
    same = decoded_TDgg.view_as(decoded_TDgg)
    same.register_hook(lambda gradient: (gradient * factor_Tgg[:, None]).to(gradient.dtype))
    return same


def init_small(module: nn.Module) -> None:
    """Linear layers as both methods' authors start them: normal, 0.01 wide, cut at 3 of that; no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.01, a=-0.03, b=0.03)
        nn.init.zeros_(module.bias)
