"""Losses and maps of methods that compare features level by level with their cosine.

Letters: T tokens (sample, modality; an image here), L levels, D channels, g x g positions, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unimmad.model.anomaly_map import cosine_distance


def level_losses(targets: Sequence[Tensor], rebuilt: Sequence[Tensor]) -> Tensor:
    """1 - cosine of each level's features, [T, D, g, g], taken as one vector: [T, L]."""
    losses = [
        1 - F.cosine_similarity(target_TDgg.flatten(1).float(), rebuilt_TDgg.flatten(1).float())
        for target_TDgg, rebuilt_TDgg in zip(targets, rebuilt, strict=True)
    ]
    return torch.stack(losses, dim=1)


def distance_map(targets: Sequence[Tensor], rebuilt: Sequence[Tensor], image_size: int) -> Tensor:
    """1 - cosine along channels of each level, brought to H x W, summed over levels: float32 [T, H, W]."""
    size = (image_size, image_size)
    maps = [
        F.interpolate(cosine_distance(target, output)[:, None], size, mode="bilinear", align_corners=True)[:, 0]
        for target, output in zip(targets, rebuilt, strict=True)
    ]
    return torch.stack(maps).sum(dim=0)
