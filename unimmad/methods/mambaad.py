"""MambaAD (He et al., NeurIPS 2024): features of a frozen ResNet, rebuilt by a decoder of selective scans.

Letters: T tokens (sample, modality), C channels, h x w positions of a level, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unimmad.config.fields import Blocks
from unimmad.config.method import MethodSettings, TimmName
from unimmad.methods.frozen_teacher import FrozenTeacherMethod
from unimmad.methods.level_cosines import distance_map
from unimmad.methods.mamba_decoder import MambaDecoder, scans_of_a_block
from unimmad.methods.scan_orders import ScanType, check_side
from unimmad.model.backbone import Backbone
from unimmad.model.method import StepFacts

from timm.models.resnet import Bottleneck  # isort: skip  # after the backbone, which sees to it that timm imports

LOSS_WEIGHT = 5.0
NARROWEST_STRIDE = 32
FUSION_BLOCKS = 3


class MambaADSettings(MethodSettings):
    """What a MambaAD is built from; the defaults are its authors' own."""

    backbone: TimmName = "resnet34.bt_in1k"
    """A network of timm's own list whose channels double from stage to stage, such as a ResNet."""
    depths: tuple[Blocks, Blocks, Blocks, Blocks] = (3, 4, 6, 3)
    """Scan blocks of the decoder's four stages, coarsest first; each a multiple of 2 or 3."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """The share of samples that the coarsest scan block is skipped for in training; it falls to 0 at the finest."""
    scan_type: ScanType = "hilbert"
    """In which order a map's positions are scanned: ``hilbert``, ``zorder``, ``zigzag``, ``scan`` (every second row
    backwards) or ``sweep`` (row by row)."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        grid, rest = divmod(self.image_size, NARROWEST_STRIDE)
        if rest or grid < 2:
            raise ValueError(f"image_size {self.image_size} is not a multiple of {NARROWEST_STRIDE}, 64 or more")
        try:
            check_side(self.scan_type, grid)
        except ValueError as error:
            raise ValueError(
                f"image_size {self.image_size} makes grids of {grid} to {8 * grid}, and {error}; "
                "take 64, 128, 256 or 512, or scan_type zigzag, scan or sweep"
            ) from None
        for depth in self.depths:
            try:
                scans_of_a_block(depth)
            except ValueError as error:
                raise ValueError(f"depths: {error}") from None
        return self


@dataclass(frozen=True)
class Reconstruction:
    """Levels at strides 4, 8 and 16, each [T, C, h, w]."""

    targets: list[Tensor]
    outputs: list[Tensor]


class MambaAD(FrozenTeacherMethod[Reconstruction]):
    """Trained to rebuild the teacher's features of normal images; where it fails, an image is anomalous."""

    def __init__(self, settings: MambaADSettings) -> None:
        """Build with random weights.

        Raises:
            ValueError: the backbone's channels do not double from stage to stage.
        """
        super().__init__(settings, Backbone(settings.backbone, without_rest=True))
        channels = self.teacher.channels
        if any(coarser != 2 * finer for finer, coarser in pairwise(channels)):
            raise ValueError(
                f"model.backbone: {settings.backbone} has {list(channels)} channels at strides 4, 8 and 16; "
                "MambaAD needs a network whose channels double from stage to stage, such as resnet34"
            )
        self.fusion = Fusion(channels)
        self.decoder = MambaDecoder(
            2 * channels[-1],
            settings.depths,
            settings.image_size // NARROWEST_STRIDE,
            settings.scan_type,
            settings.drop_path,
        )

    def compare(self, images_TCHW: Tensor) -> Reconstruction:
        targets = self.teacher_maps(images_TCHW)
        return Reconstruction(targets, self.decoder(self.fusion(targets)))

    def token_losses(self, compared: Reconstruction, facts: StepFacts) -> Tensor:
        """Five times the sum over levels of the mean squared difference, [T]."""
        levels = zip(compared.targets, compared.outputs, strict=True)
        return LOSS_WEIGHT * torch.stack([_squared_difference(*level) for level in levels]).sum(0)

    def token_maps(self, compared: Reconstruction) -> Tensor:
        """The sum over levels of the cosine distance, divided by the square of their number, [T, H, W]."""
        return distance_map(compared.targets, compared.outputs, self.image_size) / len(compared.targets) ** 2


def _squared_difference(target_TChw: Tensor, output_TChw: Tensor) -> Tensor:
    """The mean over channels and positions, in float32 whatever autocast says, [T]."""
    dtype = torch.promote_types(target_TChw.dtype, torch.float32)
    return (target_TChw.to(dtype) - output_TChw.to(dtype)).square().flatten(1).mean(1)


class Fusion(nn.Module):
    """The teacher's three maps joined at stride 16, and narrowed to stride 32 with twice the channels."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.fine_down = _convolution(fine, middle, 3, stride=2)
        self.middle = _convolution(middle, middle, 1)
        self.middle_down = _convolution(middle, coarse, 3, stride=2)
        self.coarse = _convolution(coarse, coarse, 1)
        self.joined = _convolution(coarse, coarse, 1)
        self.narrow = nn.Sequential(*_narrowing(coarse))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        fine_TChw, middle_TChw, coarse_TChw = levels
        joined_TChw = self.middle(middle_TChw) + self.fine_down(fine_TChw)
        joined_TChw = self.middle_down(joined_TChw) + self.coarse(coarse_TChw)
        return self.narrow(self.joined(joined_TChw))


def _convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """With a bias where the kernel is 1 x 1; BatchNorm and ReLU behind it."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=kernel_size == 1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _narrowing(channels: int) -> list[nn.Module]:
    """ResNet's bottleneck blocks, the first of stride 2."""
    planes, wide = channels // 2, 2 * channels
    skip = nn.Sequential(nn.Conv2d(channels, wide, 1, 2, bias=False), nn.BatchNorm2d(wide))
    return [Bottleneck(channels, planes, 2, skip), *[Bottleneck(wide, planes) for _ in range(FUSION_BLOCKS - 1)]]
