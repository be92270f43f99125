"""Whether two modalities of a sample show the same place: the cross-correlation of their edges.

Edges are what sensors have in common: a part's outline is one in colour, in infrared and in depth. Only textures may
differ, so a low correlation says nothing by itself; a high one somewhere else than in place does.

Letters: S x S pixels that edges are looked for in.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from unimmad.audit.facts import PairFacts

SIDE = 128
"""S."""
_BORDER = 2
"""Pixels at the edge of the picture, where filters see what is not there."""
_REACH = (SIDE - 2 * _BORDER) // 4
"""Shifts looked at, in pixels, in every direction."""
_NEAR = 6
"""Pixels round the best shift that belong to the same peak."""


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


def compare_edges(first: str, first_edges: NDArray, second: str, second_edges: NDArray) -> PairFacts:
    """How the edges of two modalities, from :func:`edges`, lie over each other."""
    side = 2 * len(first_edges)  # room enough that nothing wraps round
    products = fft.rfft2(first_edges, (side, side)) * np.conj(fft.rfft2(second_edges, (side, side)))
    middle = slice(side // 2 - _REACH, side // 2 + _REACH + 1)
    by_shift = np.fft.fftshift(fft.irfft2(products, (side, side)))[middle, middle]
    row, column = np.unravel_index(by_shift.argmax(), by_shift.shape)
    elsewhere = by_shift.copy()
    elsewhere[max(0, row - _NEAR) : row + _NEAR + 1, max(0, column - _NEAR) : column + _NEAR + 1] = -1
    best = float(by_shift[row, column])
    return PairFacts(
        first=first,
        second=second,
        in_place=float(by_shift[_REACH, _REACH]),
        best=best,
        margin=best - float(elsewhere.max()),
        down=float(row - _REACH) / SIDE,
        right=float(column - _REACH) / SIDE,
    )
