"""Frozen features of a picture's patches, few enough that those of all training images fit into memory.

Letters: T images, P patches of one, h x w positions, D features of a patch, E of a shortened one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from unimmad.audit.suspects import DIM, GRID
from unimmad.methods.memory_bank import MemoryBank, MemoryBankSettings

LEAST_DEVIATION = 1e-3
"""A feature counts as varying by this share of what all vary by on average, at least."""
LARGEST = 6e4
"""That float16 holds."""


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
        self._projections: dict[Hashable, Tensor] = {}

    def learn(self, kind: Hashable, images_TCHW: Tensor) -> None:
        """Take from some images of a kind how much each feature varies: their patches are divided by that."""
        patches_TPD = self._patches(images_TCHW)
        deviation_D = patches_TPD.flatten(0, 1).std(0)
        generator = torch.Generator().manual_seed(0)
        projection_DE = torch.randn(len(deviation_D), DIM, generator=generator).to(self.device) / DIM**0.5
        least = (LEAST_DEVIATION * deviation_D.mean()).clamp_min(1e-6)
        self._projections[kind] = projection_DE / deviation_D.maximum(least)[:, None]

    def describe(self, kind: Hashable, images_TCHW: Tensor) -> Tensor:
        """float16 [T, P, E], on the CPU. A kind of which nothing was learnt yet is learnt from these."""
        if kind not in self._projections:
            self.learn(kind, images_TCHW)
        patches_TPE = self._patches(images_TCHW) @ self._projections[kind]
        return patches_TPE.clamp(-LARGEST, LARGEST).half().cpu()

    def digest(self) -> str:
        """Changes with what was learnt."""
        digest = hashlib.sha256(repr(list(self._projections)).encode())
        for projection_DE in self._projections.values():
            digest.update(projection_DE.cpu().numpy().tobytes())
        return digest.hexdigest()

    @torch.inference_mode()
    def _patches(self, images_TCHW: Tensor) -> Tensor:
        """[T, P, D]."""
        patches_ThwD = self._method.describe_patches(images_TCHW.to(self.device))
        return F.adaptive_avg_pool2d(patches_ThwD.permute(0, 3, 1, 2), GRID).flatten(2).transpose(1, 2)


def _load(method: MemoryBank, settings: FeatureSettings) -> str:
    try:
        return method.load_backbone()
    except ValueError:
        if settings.weights != "imagenet":
            raise
        raise NoWeightsError(
            f"ImageNet weights of {settings.backbone} can't be had here; --weights FILE gives them"
        ) from None
