"""RD, reverse distillation (Deng & Li, CVPR 2022): a student rebuilds the teacher's features from a narrow embedding.

The student is the teacher mirrored: its residual blocks, with transposed convolutions in place of strided ones.

Letters: T tokens (sample, modality), C_l channels of level l at strides 4, 8, 16, h x w positions of a level, H x W
pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from pydantic import model_validator
from torch import Tensor, nn

from unimmad.config.method import MethodSettings, TimmName
from unimmad.methods.frozen_teacher import FrozenTeacherMethod
from unimmad.methods.level_cosines import distance_map, level_losses
from unimmad.model.backbone import Backbone
from unimmad.model.backends.torchvision_repair import ensure_torchvision_imports
from unimmad.model.method import StepFacts

ensure_torchvision_imports()
from timm.models.resnet import BasicBlock, Bottleneck  # noqa: E402

EMBEDDING_STRIDE = 32


class RDSettings(MethodSettings):
    """Sizes of the network; the student's follow the backbone."""

    backbone: TimmName = "wide_resnet50_2.tv_in1k"
    """A network of timm's own list with features at strides 4, 8 and 16. Of a ResNet the student has the same residual
    blocks, of any other the blocks of a ResNet-18."""

    @model_validator(mode="after")
    def _check(self) -> RDSettings:
        if self.image_size % EMBEDDING_STRIDE:
            raise ValueError(f"image_size {self.image_size} is not a multiple of {EMBEDDING_STRIDE}")
        return self


@dataclass(frozen=True)
class Features:
    """What is compared, finest level first: [T, C_l, h, w] each."""

    teacher: Sequence[Tensor]
    student: Sequence[Tensor]


class RD(FrozenTeacherMethod[Features]):
    """Teacher, one-class embedding, student."""

    def __init__(self, settings: RDSettings) -> None:
        """The method with random weights.

        Raises:
            ValueError: the backbone does not exist or has no features at strides 4, 8 and 16.
        """
        super().__init__(settings, Backbone(settings.backbone, without_rest=True))
        blocks = ResidualBlocks.of(self.teacher)
        self.embedding = OneClassEmbedding(self.teacher.channels, blocks)
        self.student = Student(self.teacher.channels, blocks)
        for module in (*self.embedding.modules(), *self.student.modules()):
            if isinstance(module, nn.Conv2d):  # transposed ones start as PyTorch's
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def compare(self, images_TCHW: Tensor) -> Features:
        maps = self.teacher_maps(images_TCHW)
        return Features(maps, self.student(self.embedding(maps)))

    def token_losses(self, compared: Features, facts: StepFacts) -> Tensor:
        """1 - cosine of all of a level's features as one vector, summed over levels."""
        return level_losses(compared.teacher, compared.student).sum(dim=1)

    def token_maps(self, compared: Features) -> Tensor:
        """1 - cosine along channels, brought to H x W, summed over levels."""
        return distance_map(compared.teacher, compared.student, self.image_size)


@dataclass(frozen=True)
class ResidualBlocks:
    """Which residual blocks the student is made of."""

    kind: type[BasicBlock] | type[Bottleneck]
    base_width: int
    """Channels of a bottleneck's inner convolutions where its planes are 64."""
    counts: tuple[int, int, int]
    """Of the stages that give stride 16, 8 and 4."""

    @classmethod
    def of(cls, teacher: Backbone) -> ResidualBlocks:
        """A ResNet's own, from the first stage to the third; else a ResNet-18's."""
        stages = [getattr(teacher.network, f"layer{number}", ()) for number in (1, 2, 3)]
        first = stages[0][0] if stages[0] else None
        if not isinstance(first, BasicBlock | Bottleneck):
            return cls(BasicBlock, 64, (2, 2, 2))
        counts = (len(stages[0]), len(stages[1]), len(stages[2]))
        if isinstance(first, BasicBlock):
            return cls(BasicBlock, 64, counts)
        planes = first.conv3.out_channels // Bottleneck.expansion
        return cls(Bottleneck, 64 * first.conv2.out_channels // planes, counts)

    def stage(
        self, in_channels: int, out_channels: int, count: int, resampling: Literal["down", "up"]
    ) -> nn.Sequential:
        """``count`` blocks, the first of which halves or doubles height and width."""
        planes = out_channels // self.kind.expansion
        rest = [self.kind(out_channels, planes, base_width=self.base_width) for _ in range(count - 1)]
        return nn.Sequential(self._first(in_channels, out_channels, resampling), *rest)

    def _first(self, in_channels: int, out_channels: int, resampling: Literal["down", "up"]) -> nn.Module:
        shortcut = nn.Conv2d(in_channels, out_channels, 1, 2, bias=False)
        block = self.kind(
            in_channels,
            out_channels // self.kind.expansion,
            stride=2,
            downsample=nn.Sequential(shortcut, nn.BatchNorm2d(out_channels)),
            base_width=self.base_width,
        )
        if resampling == "up":
            strided = "conv1" if self.kind is BasicBlock else "conv2"
            for name in (strided, "downsample.0"):
                block.set_submodule(name, _doubling(cast(nn.Conv2d, block.get_submodule(name))))
        return block


def _doubling(halving: nn.Conv2d) -> nn.ConvTranspose2d:
    """The transposed convolution that doubles height and width where ``halving`` halves them."""
    return nn.ConvTranspose2d(halving.in_channels, halving.out_channels, 2, 2, bias=False)


class OneClassEmbedding(nn.Module):
    """Joins the teacher's three maps at stride 16, and squeezes them to one at stride 32."""

    def __init__(self, channels: Sequence[int], blocks: ResidualBlocks) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.from_stride_4 = nn.Sequential(*_halved(fine, middle), *_halved(middle, coarse))
        self.from_stride_8 = nn.Sequential(*_halved(middle, coarse))
        # A ResNet's last stage, which these blocks are like, is as deep as its first.
        self.narrow = blocks.stage(3 * coarse, 2 * coarse, blocks.counts[0], "down")

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """[T, C_l, h, w] at strides 4, 8, 16 -> [T, 2 C_3, H/32, W/32]."""
        fine_TChw, middle_TChw, coarse_TChw = maps
        joined_TChw = torch.cat([self.from_stride_4(fine_TChw), self.from_stride_8(middle_TChw), coarse_TChw], dim=1)
        return self.narrow(joined_TChw)


def _halved(in_channels: int, out_channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, 2, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


class Student(nn.Module):
    """Stride 32 to 16, 8 and 4, each with the teacher's channels."""

    def __init__(self, channels: Sequence[int], blocks: ResidualBlocks) -> None:
        super().__init__()
        fine, middle, coarse = channels
        widths = ((2 * coarse, coarse), (coarse, middle), (middle, fine))
        self.stages = nn.ModuleList(
            [blocks.stage(*width, count, "up") for width, count in zip(widths, blocks.counts, strict=True)]
        )

    def forward(self, x_TChw: Tensor) -> list[Tensor]:
        """[T, 2 C_3, H/32, W/32] -> [T, C_l, h, w] at strides 4, 8, 16."""
        maps = []
        for stage in self.stages:
            x_TChw = stage(x_TChw)
            maps.append(x_TChw)
        return maps[::-1]
