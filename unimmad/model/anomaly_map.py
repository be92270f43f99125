"""From distances to maps and scores (METHOD, Inference).

Letters: B samples, T tokens, h x w positions of a level, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Border = Literal["zeros", "mirror"]


def cosine_distance(target_TChw: Tensor, reconstruction_TChw: Tensor) -> Tensor:
    """1 - cosine similarity along channels, in float32: [T, h, w], 0 (same direction) to 2."""
    # Rounding takes it below 0, of which a power that is not a whole number is NaN.
    return (1 - F.cosine_similarity(target_TChw.float(), reconstruction_TChw.float(), dim=1)).clamp_min(0)


def anomaly_maps(distances: Sequence[Tensor], sample_of_token_T: Tensor, batch: int, image_size: int) -> Tensor:
    """Every token's and level's distances, brought to H x W, joined by the root of the sum of squares: [B, H, W]."""
    squares_BHW = distances[0].new_zeros(batch, image_size, image_size)
    for distance_Thw in distances:
        upsampled_THW = F.interpolate(
            distance_Thw[:, None], size=(image_size, image_size), mode="bilinear", align_corners=True
        )[:, 0]
        squares_BHW = squares_BHW.index_add(0, sample_of_token_T, upsampled_THW.square())
    return squares_BHW.sqrt()


def gaussian_blur(maps_BHW: Tensor, kernel_size: int, sigma: float, border: Border = "zeros") -> Tensor:
    """Blur with a square Gaussian window of ``kernel_size`` pixels; ``sigma`` 0 changes nothing.

    Args:
        maps_BHW: anomaly maps.
        kernel_size: odd.
        sigma: standard deviation in pixels.
        border: what lies beyond the map: zeros, or the map mirrored at its edge, the last pixel twice (as in SciPy's
            ``gaussian_filter``).
    """
    if sigma == 0:
        return maps_BHW
    offsets = torch.arange(kernel_size, dtype=maps_BHW.dtype, device=maps_BHW.device) - (kernel_size - 1) / 2
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    weights = weights / weights.sum()
    padding = kernel_size // 2
    if border == "mirror":
        rows, columns = (_mirrored(size, padding, maps_BHW.device) for size in maps_BHW.shape[1:])
        maps_BHW, padding = maps_BHW[:, rows][:, :, columns], 0
    blurred = F.conv2d(maps_BHW[:, None], weights[None, None, :, None], padding=(padding, 0))
    return F.conv2d(blurred, weights[None, None, None, :], padding=(0, padding))[:, 0]


def _mirrored(size: int, padding: int, device: torch.device) -> Tensor:
    """Where the pixels of a mirrored row come from: [size + 2 padding]."""
    places = torch.arange(-padding, size + padding, device=device) % (2 * size)
    return torch.minimum(places, 2 * size - 1 - places)


def image_scores(maps_BHW: Tensor, top_share: float, pool: int = 1) -> Tensor:
    """Mean of each map's largest values: [B].

    Args:
        maps_BHW: anomaly maps.
        top_share: how many: H*W*top_share, rounded down, at least one.
        pool: before, the mean of every ``pool`` x ``pool`` window takes the place of the pixels; 1 changes nothing.
    """
    if pool > 1:
        maps_BHW = F.avg_pool2d(maps_BHW[:, None], pool, stride=1)[:, 0]
    flat = maps_BHW.flatten(1)
    count = max(1, int(flat.shape[1] * top_share))
    return flat.topk(count, dim=1).values.mean(dim=1)
