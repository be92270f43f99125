"""Frozen features of a picture's patches, few enough that those of all training images fit into memory.

Letters: T images, P patches of one, h x w positions, D features of a patch, E of a shortened one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unimmad.audit.suspects import DIM, GRID
from unimmad.methods.memory_bank import MemoryBank, MemoryBankSettings

_NOISE_PICTURES = 8


@dataclass(frozen=True)
class FeatureSettings:
    """Which frozen network looks at the images."""

    backbone: str = "resnet18.tv_in1k"
    """Of timm, with features at strides 8 and 16."""
    weights: str = "imagenet"
    """``imagenet`` or a file, as ``model.backbone_weights``."""
    image_size: int = 160
    """Pixels a side; on real sets larger ones find no more."""

    def to_json(self) -> dict[str, str | int]:
        return asdict(self)


class NoWeightsError(ValueError):
    """ImageNet weights can't be had on this machine, and no file was named."""


class PatchDescriber:
    """A frozen network that describes patches."""

    def __init__(self, settings: FeatureSettings, device: torch.device) -> None:
        """
        Raises:
            NoWeightsError: ImageNet weights are asked for, and can't be had.
            ValueError: no such network, or a file of weights that can't be read or does not fit.
        """
        method = MemoryBank(
            MemoryBankSettings(
                backbone=settings.backbone,
                backbone_weights=settings.weights,
                features="joined",
                strides=(8, 16),
                image_size=settings.image_size,
            )
        )
        self.origin = _load(method, settings)
        """What weights it has, in words."""
        self.settings = settings
        self.device = device
        self._method = method.inference_form(0).to(device)
        generator = torch.Generator().manual_seed(0)
        deviation_D = (
            self._method.describe_patches(_noise(settings.image_size, generator).to(device)).flatten(0, 2).std(0)
        )
        projection_DE = torch.randn(len(deviation_D), DIM, generator=generator).to(device) / DIM**0.5
        self._projection_DE = projection_DE / deviation_D.clamp_min(1e-3 * deviation_D.mean())[:, None]

    @torch.inference_mode()
    def describe(self, images_TCHW: Tensor) -> Tensor:
        """float16 [T, P, E], on the CPU."""
        patches_ThwD = self._method.describe_patches(images_TCHW.to(self.device))
        pooled_TDgg = F.adaptive_avg_pool2d(patches_ThwD.permute(0, 3, 1, 2), GRID)
        patches_TPE = pooled_TDgg.flatten(2).transpose(1, 2) @ self._projection_DE
        return patches_TPE.clamp(-6e4, 6e4).half().cpu()


def _load(method: MemoryBank, settings: FeatureSettings) -> str:
    try:
        return method.load_backbone()
    except ValueError:
        if settings.weights != "imagenet":
            raise
        raise NoWeightsError(
            f"ImageNet weights of {settings.backbone} can't be had here; --weights FILE gives them"
        ) from None


def _noise(size: int, generator: torch.Generator) -> Tensor:
    """Pictures as varied as photographs are, at all scales: [_NOISE_PICTURES, 3, size, size]. Features are divided by
    how much they vary on these, which does not change with the data."""
    total = torch.zeros(_NOISE_PICTURES, 3, size, size)
    side = 2
    while side <= size:
        squares = torch.randn(_NOISE_PICTURES, 3, side, side, generator=generator)
        total += F.interpolate(squares, size=(size, size), mode="bilinear", align_corners=False)
        side *= 2
    return total / total.std()
