"""The rule ``foreground``: the object alone, told from an even background, image by image.

Depth: what was measured. RGB and gray: what differs from the picture's frame, by Otsu's threshold on the distance from
the frame's median colour. Holes are filled, and a margin is added, so that a defect at the edge is still looked at.
Modalities are joined: the object is what any of them sees. Where less than 1% or more than 99% would be left, the rule
has nothing to go by, and everything is looked at.

Letters: M modalities, C = 3 channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FRAME = 1 / 32
"""Width of the frame that shows the background, of the picture's side; at least a pixel."""
MARGIN = 1 / 64
"""Of the picture's side; at least a pixel."""
SPECK = 0.01
"""Pieces smaller than this share of the largest one belong to the background."""
LEAST = 0.01
BINS = 256


def foreground(images_MCHW: NDArray[np.float32], kinds: Sequence[str]) -> NDArray[np.bool_]:
    """Where the object is.

    Args:
        images_MCHW: normalised; depth lies at 0 where nothing was measured.
        kinds: of each modality, ``rgb``, ``gray`` or ``depth``.

    Returns:
        bool, H x W; all True where nothing tells object and background apart.
    """
    height, width = images_MCHW.shape[-2:]
    found_HW = np.zeros((height, width), dtype=bool)
    for image_CHW, kind in zip(images_MCHW, kinds, strict=True):
        object_HW = image_CHW[0] != 0 if kind == "depth" else _apart_from_frame(image_CHW)
        object_HW = _without_specks(ndimage.binary_fill_holes(object_HW))
        if LEAST <= object_HW.mean() <= 1 - LEAST:
            found_HW |= object_HW
    margin = max(1, round(MARGIN * max(height, width)))
    grown_HW = ndimage.binary_dilation(found_HW, np.ones((3, 3), dtype=bool), iterations=margin)
    return grown_HW if found_HW.any() else np.ones((height, width), dtype=bool)


def _apart_from_frame(image_CHW: NDArray[np.float32]) -> NDArray[np.bool_]:
    height, width = image_CHW.shape[-2:]
    edge = max(1, round(FRAME * min(height, width)))
    frame_HW = np.ones((height, width), dtype=bool)
    frame_HW[edge:-edge, edge:-edge] = False
    background_C = np.median(image_CHW[:, frame_HW], axis=1)
    distance_HW = np.abs(image_CHW - background_C[:, None, None]).max(axis=0)
    return distance_HW > _otsu(distance_HW)


def _otsu(values: NDArray[np.float32]) -> float:
    """The bin edge that splits the values into two groups with the largest variance between them."""
    counts_B, edge_B1 = np.histogram(values, bins=BINS)
    middle_B = (edge_B1[:-1] + edge_B1[1:]) / 2
    below_B, sum_B = np.cumsum(counts_B), np.cumsum(counts_B * middle_B)
    above_B = below_B[-1] - below_B
    with np.errstate(divide="ignore", invalid="ignore"):
        apart_B = sum_B / below_B - (sum_B[-1] - sum_B) / above_B
        between_B = np.nan_to_num(below_B * above_B * np.square(apart_B))
    return float(edge_B1[1:][between_B.argmax()])


def _without_specks(object_HW: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pieces_HW, count = ndimage.label(object_HW)
    size_P = np.bincount(pieces_HW.ravel(), minlength=count + 1)
    size_P[0] = 0
    return (size_P >= max(1.0, SPECK * size_P.max()))[pieces_HW] & object_HW
