"""A feature vector for each patch of an image, from maps of several layers.

Letters: N images, C channels of a layer, h x w positions (of the finest layer at the end), D features of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def patchcore_patches(maps: Sequence[Tensor], layer_dim: int, patch_dim: int, align_corners: bool = False) -> Tensor:
    """PatchCore's: [N, h, w, patch_dim].

    A layer's 3 x 3 windows (zeros beyond the edge), all values of each, averaged to ``layer_dim`` of them; then all
    layers' together averaged to ``patch_dim``. Coarser layers come bilinearly to the first one's grid, here after the
    averaging, which gives the same numbers with fewer operations.

    Args:
        maps: [N, C, h, w] of each layer, the finest first.
        layer_dim: features of a layer.
        patch_dim: features of a patch.
        align_corners: of the bilinear resizing; False is PatchCore's.
    """
    height, width = maps[0].shape[2:]
    layers = []
    for map_NChw in maps:
        values_NPV = F.unfold(map_NChw, 3, padding=1).transpose(1, 2)
        averaged_NPD = F.adaptive_avg_pool1d(values_NPV, layer_dim)
        grid_NDhw = averaged_NPD.transpose(1, 2).unflatten(2, map_NChw.shape[2:])
        layers.append(_to_grid(grid_NDhw, height, width, align_corners).flatten(2).transpose(1, 2))
    return F.adaptive_avg_pool1d(torch.cat(layers, dim=2), patch_dim).unflatten(1, (height, width))


def joined_patches(maps: Sequence[Tensor], align_corners: bool = False) -> Tensor:
    """Every layer's 3 x 3 means (zeros beyond the edge count), brought bilinearly to the first one's grid, joined.

    Args:
        maps: [N, C, h, w] of each layer, the finest first.
        align_corners: of the bilinear resizing.

    Returns:
        [N, h, w, D], D channels of all layers.
    """
    height, width = maps[0].shape[2:]
    means = [F.avg_pool2d(map_NChw, 3, stride=1, padding=1) for map_NChw in maps]
    return torch.cat([_to_grid(mean_NChw, height, width, align_corners) for mean_NChw in means], dim=1).permute(
        0, 2, 3, 1
    )


def _to_grid(map_NChw: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    if map_NChw.shape[2:] == (height, width):
        return map_NChw
    return F.interpolate(map_NChw, size=(height, width), mode="bilinear", align_corners=align_corners)
