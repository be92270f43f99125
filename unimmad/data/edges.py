"""Whether two modalities of a sample show the same place: the cross-correlation of their edges.

Edges are what sensors have in common: a part's outline is one in colour, in infrared and in depth. Only textures may
differ, so a low correlation says nothing by itself; a high one somewhere else than in place does.

Letters: S x S pixels that edges are looked for in, M modalities of a sample, C channels, H x W pixels.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from torch import Tensor
from torch.nn import functional as F

SIDE = 128
"""S."""
_BORDER = 2
"""Pixels at the edge of the picture, where filters see what is not there."""
_REACH = (SIDE - 2 * _BORDER) // 4
"""Shifts looked at, in pixels, in every direction."""
_NEAR = 6
"""Pixels round the best shift that belong to the same peak."""
CLEAR = 0.3
"""Correlation of edges that says something."""
LEAST_MARGIN = 0.05
LEAST_GAIN = 0.1
"""What the best shift has to add."""
BEYOND_USUAL = 0.05
"""And beyond what normal images have."""
LEAST_SHIFT = 0.03
"""Of the image's side: less is not told."""


class Overlap(NamedTuple):
    """How two modalities' edges lie over each other."""

    in_place: float
    """Correlation as they are."""
    best: float
    """Correlation where the second is shifted to fit best."""
    margin: float
    """By how much that is better than anywhere far from there."""
    down: float
    """That shift as a share of the height; positive: the second lies too high."""
    right: float
    """And of the width; positive: the second lies too far left."""

    @property
    def gain(self) -> float:
        """By how much the edges fit better elsewhere than in place; 0 where that is too near to be told."""
        return self.best - self.in_place if max(abs(self.down), abs(self.right)) > LEAST_SHIFT else 0.0

    def is_misaligned(self, usual_gain: float | None) -> bool:
        """Whether one modality seems to lie elsewhere than the other.

        Args:
            usual_gain: of ``usual_gain``, which must be exceeded by ``BEYOND_USUAL``; None: not known, then the best
                place must be clear in itself.
        """
        if usual_gain is not None:
            return self.gain > max(LEAST_GAIN, usual_gain + BEYOND_USUAL)
        return self.gain >= LEAST_GAIN and self.best >= CLEAR and self.margin >= LEAST_MARGIN


def usual_gain(normal: Iterable[Overlap]) -> float | None:
    """The largest gain in normal images; None without one, or where their modalities have no clear edges in common."""
    found = list(normal)
    if not found or statistics.median(one.in_place for one in found) < CLEAR:
        return None
    return max(one.gain for one in found)


def edges(image_SS: NDArray) -> NDArray[np.float32]:
    """Strength of edges about its mean, fading to the picture's border, of length 1; zero where there are none.

    The root of the gradient: a few strong edges would drown all others.
    """
    smooth = ndimage.gaussian_filter(image_SS.astype(np.float32), 1.0)
    gradient = np.hypot(ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1))
    strength = np.sqrt(gradient[_BORDER:-_BORDER, _BORDER:-_BORDER])
    if not strength.max() > 1e-6:
        return np.zeros_like(strength)
    strength -= strength.mean()
    window = np.hanning(len(strength)).astype(np.float32)
    strength *= window[:, None] * window
    return strength / np.linalg.norm(strength)


def overlap(first_edges: NDArray, second_edges: NDArray) -> Overlap:
    """How the edges of two modalities, from :func:`edges`, lie over each other."""
    side = 2 * len(first_edges)  # room enough that nothing wraps round
    products = fft.rfft2(first_edges, (side, side)) * np.conj(fft.rfft2(second_edges, (side, side)))
    middle = slice(side // 2 - _REACH, side // 2 + _REACH + 1)
    by_shift = np.fft.fftshift(fft.irfft2(products, (side, side)))[middle, middle]
    row, column = np.unravel_index(by_shift.argmax(), by_shift.shape)
    elsewhere = by_shift.copy()
    elsewhere[max(0, row - _NEAR) : row + _NEAR + 1, max(0, column - _NEAR) : column + _NEAR + 1] = -1
    best = float(by_shift[row, column])
    return Overlap(
        in_place=float(by_shift[_REACH, _REACH]),
        best=best,
        margin=best - float(elsewhere.max()),
        down=float(row - _REACH) / SIDE,
        right=float(column - _REACH) / SIDE,
    )


def overlaps(images_MCHW: Tensor, names: Sequence[str]) -> dict[str, Overlap]:
    """How each modality but the first lies over the first, by name; empty where there is but one.

    Args:
        images_MCHW: float32, without padding, of whatever scale.
        names: of the modalities.
    """
    if len(names) < 2:
        return {}
    small_MSS = F.interpolate(images_MCHW.mean(1, keepdim=True), (SIDE, SIDE), mode="bilinear", antialias=True)[:, 0]
    first, *others = (edges(image_SS.numpy()) for image_SS in small_MSS)
    return {name: overlap(first, other) for name, other in zip(names[1:], others, strict=True)}
