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


def parts_of_squares(squares_THW: Tensor, sample_of_token_T: Tensor, batch: int) -> Tensor:
    """What each token adds to its sample's root of the sum of squares: its square over the root, [T, H, W]."""
    sums_BHW = squares_THW.new_zeros(batch, *squares_THW.shape[1:]).index_add(0, sample_of_token_T, squares_THW)
    roots_THW = sums_BHW.sqrt()[sample_of_token_T]
    return squares_THW / roots_THW.clamp_min(torch.finfo(squares_THW.dtype).tiny)


def token_squares(distances: Sequence[Tensor], image_size: int) -> Tensor:
    """Sums over the levels, [T, h, w] each, of the squares that ``anomaly_maps`` adds up: [T, H, W]."""
    size = (image_size, image_size)
    enlarged = (F.interpolate(one[:, None], size=size, mode="bilinear", align_corners=True)[:, 0] for one in distances)
    return torch.stack([level_THW.square() for level_THW in enlarged]).sum(0)


def part_scores(map_HW: Tensor, parts_MHW: Tensor, look_HW: Tensor | None, top_share: float, pool: int = 1) -> Tensor:
    """What each of a map's parts, which add up to it, adds to its score: [M], adding up to that.

    Args:
        map_HW: as ``image_scores`` (``region_score`` where ``look_HW`` says what is looked at) takes it.
        parts_MHW: its parts.
        look_HW: bool, True for at least one pixel; None: all.
        top_share: of the pixels.
        pool: see ``image_scores``.
    """
    maps_NHW = torch.cat([map_HW[None], parts_MHW])
    look_HW = torch.ones_like(map_HW, dtype=torch.bool) if look_HW is None else look_HW
    if pool > 1:
        share_HW = F.avg_pool2d(look_HW[None].to(map_HW.dtype), pool, stride=1)
        sums_NHW = F.avg_pool2d((maps_NHW * look_HW)[:, None], pool, stride=1)[:, 0]
        maps_NHW, look_HW = sums_NHW / share_HW, share_HW[0] > 0
    values_NP = maps_NHW[:, look_HW]
    top_P = values_NP[0].topk(max(1, int(values_NP.shape[1] * top_share))).indices
    return values_NP[1:, top_P].mean(1)


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


def weigh(maps_BHW: Tensor, weights_BHW: Tensor) -> Tensor:
    """Maps of regions of interest: each value times its pixel's weight, 0 to 1; no weight makes a value larger."""
    return torch.where(weights_BHW > 0, torch.minimum(maps_BHW * weights_BHW, maps_BHW), 0)


def region_score(map_HW: Tensor, look_HW: Tensor, top_share: float, pool: int = 1) -> Tensor:
    """``image_scores`` of the pixels that are looked at alone: a number.

    Args:
        map_HW: anomaly map.
        look_HW: bool, True for at least one pixel.
        top_share: of these pixels.
        pool: the mean of the pixels of each window that are looked at.
    """
    if pool > 1:
        share_HW = F.avg_pool2d(look_HW[None].to(map_HW.dtype), pool, stride=1)[0]
        sums_HW = F.avg_pool2d((map_HW * look_HW)[None], pool, stride=1)[0]
        map_HW, look_HW = sums_HW / share_HW, share_HW > 0
    values = map_HW[look_HW]
    return values.topk(max(1, int(len(values) * top_share))).values.mean()


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
