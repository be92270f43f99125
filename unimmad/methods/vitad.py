"""ViTAD (Zhang et al., CVIU 2025): a plain vision transformer rebuilds the tokens of another from its last block's.

Letters: T tokens (sample, modality; an image here), P patches of an image, D channels, g x g patches, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimmad.config.fields import NotNegative, Positive
from unimmad.config.method import BackboneKind, MethodSettings, PositionResampling, TimmName
from unimmad.methods.frozen_teacher import FrozenTeacher
from unimmad.methods.level_cosines import distance_map, level_losses
from unimmad.methods.single_image import SingleImageMethod
from unimmad.model.backends.torchvision_repair import ensure_torchvision_imports
from unimmad.model.method import StepFacts
from unimmad.model.vit import FrozenViT

ensure_torchvision_imports()
from timm.models.vision_transformer import Block, init_weights_vit_timm  # noqa: E402

NORM_EPS = 1e-6

Blocks = Annotated[tuple[NotNegative, ...], Field(min_length=1)]


class ViTADSettings(MethodSettings):
    """Which tokens are compared; defaults are the authors'."""

    image_size: Positive = 256
    """Height and width of every image; a multiple of the backbone's patches."""
    backbone: TimmName = "vit_small_patch16_224.dino"
    """A vision transformer of timm's own list. The student has its channels and heads."""
    teacher_blocks: Blocks = (2, 5, 8)
    """Blocks of the backbone that are rebuilt, counted from 0, ascending."""
    neck_block: NotNegative = 11
    """The block of the backbone, counted from 0, whose output the student starts from."""
    student_blocks: Blocks = (2, 5, 8)
    """Blocks of the student, counted from 0, ascending; the last one stands for the first of ``teacher_blocks``, and
    is the student's last."""
    position_resampling: PositionResampling = "timm"
    """How the backbone's position embeddings are brought to the image's grid: as ``timm`` does, or ``dinov2`` as that
    backbone's authors do."""

    @property
    def backbone_kind(self) -> BackboneKind:
        return "transformer"

    @model_validator(mode="after")
    def _check(self) -> ViTADSettings:
        for key in ("teacher_blocks", "student_blocks"):
            blocks = getattr(self, key)
            if list(blocks) != sorted(set(blocks)):
                raise ValueError(f"{key} {blocks} must ascend")
        if len(self.teacher_blocks) != len(self.student_blocks):
            raise ValueError(
                f"student_blocks {self.student_blocks} must be as many as teacher_blocks {self.teacher_blocks}"
            )
        return self


@dataclass(frozen=True)
class Levels:
    """Tokens of the blocks compared, [T, D, g, g] each, in the order of ``teacher_blocks``."""

    teacher: list[Tensor]
    student: list[Tensor]


class ViTAD(FrozenTeacher, SingleImageMethod[Levels]):
    """Frozen teacher, fusion layer, student. The class token has no part in what is compared."""

    settings: ViTADSettings
    teacher: FrozenViT

    def __init__(self, settings: ViTADSettings) -> None:
        """The method with random weights.

        Raises:
            ValueError: the backbone does not exist, has too few blocks, or its patches do not tile the image.
        """
        super().__init__()
        self.settings = settings
        used = sorted({*settings.teacher_blocks, settings.neck_block})
        self.levels = [used.index(block) for block in settings.teacher_blocks]
        self.neck = used.index(settings.neck_block)
        self.teacher = FrozenViT(settings.backbone, used, settings.image_size, settings.position_resampling)
        self.fusion = nn.Linear(self.teacher.dim, self.teacher.dim)
        self.student = Student(
            self.teacher.dim, self.teacher.heads, self.teacher.grid**2, list(settings.student_blocks)
        )

    def frozen_features(self) -> tuple[Any, str] | None:
        return self.teacher, "features"

    def compare(self, images_TCHW: Tensor) -> Levels:
        outputs = [tokens.patches_NPD for tokens in self.teacher(images_TCHW)]
        rebuilt = self.student(self.fusion(outputs[self.neck]))
        return Levels(
            [self.teacher.as_map(outputs[level]) for level in self.levels],
            [self.teacher.as_map(tokens_TPD) for tokens_TPD in rebuilt[::-1]],
        )

    def token_losses(self, compared: Levels, facts: StepFacts) -> Tensor:
        """1 - cosine of a level's features as one vector, summed over levels."""
        return level_losses(compared.teacher, compared.student).sum(dim=1)

    def token_maps(self, compared: Levels) -> Tensor:
        """The sum of the levels' distances, divided by the square of their number, as the authors do."""
        return distance_map(compared.teacher, compared.student, self.image_size) / len(compared.teacher) ** 2


class Student(nn.Module):
    """Blocks of a vision transformer upon tokens that get new positions."""

    def __init__(self, dim: int, heads: int, patches: int, outputs: list[int]) -> None:
        super().__init__()
        self.outputs = outputs
        self.pos_embed = nn.Parameter(torch.empty(1, patches, dim))
        norm = partial(nn.LayerNorm, eps=NORM_EPS)
        self.blocks = nn.ModuleList(Block(dim, heads, qkv_bias=True, norm_layer=norm) for _ in range(outputs[-1] + 1))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks.apply(init_weights_vit_timm)

    def forward(self, tokens_TPD: Tensor) -> list[Tensor]:
        """The tokens behind the blocks ``outputs``: [T, P, D] each."""
        tokens_TPD = tokens_TPD + self.pos_embed
        given = []
        for place, block in enumerate(self.blocks):
            tokens_TPD = block(tokens_TPD)
            if place in self.outputs:
                given.append(tokens_TPD)
        return given
