"""Maps of several levels: what a search describes of them, and how they become one.

Letters: B samples, T tokens (sample, modality), C channels and h x w positions of a level, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_RATIO = 0.05
"""Distances count as this share of a usual one at least. Below it there is rounding, and a patch that is in a bank."""


def described(map_TChw: Tensor) -> Tensor:
    """The means of 3 x 3 windows, zeros beyond the edge: float32 [T, h, w, C]."""
    return F.avg_pool2d(map_TChw.float(), 3, stride=1, padding=1).permute(0, 2, 3, 1)


def nearer_class(first: Sequence[Tensor], second: Sequence[Tensor], levels: int) -> list[Tensor]:
    """Of each token those maps, [t, h, w] each, of which the means of the first ``levels`` add up to less."""
    means_t = [sum(of_level_thw.mean((1, 2)) for of_level_thw in maps[:levels]) for maps in (first, second)]
    is_second_t11 = (means_t[1] < means_t[0])[:, None, None]  # type: ignore[index]
    return [torch.where(is_second_t11, *pair) for pair in zip(second, first, strict=True)]


def harmonic_mean(ratios: Sequence[Tensor], image_size: int, weights_L: Tensor | None = None) -> Tensor:
    """Of all levels, [T, h, w] each, brought bilinearly to the image size: [T, H, W].

    Args:
        ratios: distances over usual ones.
        image_size: H and W.
        weights_L: what each counts; None: all alike.
    """
    if weights_L is None:
        weights_L = ratios[0].new_ones(len(ratios))
    inverses = [at_image_size(ratio_Thw, image_size).clamp_min(LEAST_RATIO).reciprocal() for ratio_Thw in ratios]
    return weights_L.sum() / (weights_L[:, None, None, None] * torch.stack(inverses)).sum(0)


def at_image_size(map_Thw: Tensor, image_size: int) -> Tensor:
    """Bilinearly: [T, H, W]."""
    size = (image_size, image_size)
    return F.interpolate(map_Thw[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]


def sum_of_tokens(maps_THW: Tensor, sample_of_token_T: Tensor, batch: int) -> Tensor:
    """[B, H, W]."""
    return maps_THW.new_zeros(batch, *maps_THW.shape[1:]).index_add(0, sample_of_token_T, maps_THW)
