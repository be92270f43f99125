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


def mean_distance_map(targets: Sequence[Tensor], rebuilt: Sequence[Tensor], image_size: int) -> Tensor:
    """The mean over levels of 1 - cosine along channels, of levels of the same grid: [T, H, W]."""
    distances = [cosine_distance(*pair) for pair in zip(targets, rebuilt, strict=True)]
    mean_Tgg = torch.stack(distances).mean(dim=0)
    size = (image_size, image_size)
    return F.interpolate(mean_Tgg[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]
