"""What one decoded image shows of its modality: number type, values, colours; of depth, distances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from unimmad.data.decoded import DecodedImage
from unimmad.data.depth_image import DepthImage, read_depth
from unimmad.data.index import Modality
from unimmad.data.prepare import check_fits

_QUANTILES = (0.02, 0.5, 0.98)
_MOST_PIXELS = 2**16
"""Of a depth image, of which quantiles are taken."""


# One of each image; as pydantic's models they would take three times the memory.
@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What one image shows; of depth, values are those of its foreground that are not 0."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    dtype: str
    channels: int
    orientation: int
    transparent: float
    """Share of its pixels."""
    planes: bool = False
    """A TIFF whose channels are stored one after the other."""
    low: float = 0.0
    """The smallest stored value; 0 where there is none."""
    high: float = 0.0
    measured: float = 1.0
    """Depth: share of the foreground."""
    zeros: float = 0.0
    """Depth: share of the measured pixels that are exactly 0."""
    smallest: float = 0.0
    """Depth: the smallest stored size of a value that is not 0."""
    middle: float = 0.0
    """Depth: the median stored value."""
    metres: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Depth: the 2nd, 50th and 98th percentile of the distances."""


def facts_of(decoded: DecodedImage, modality: Modality, where: str) -> tuple[ImageFacts, str]:
    """And what one should know of how its values are read, by the modality's name; empty where nothing.

    Raises:
        ValueError: the image does not fit the modality's kind.
    """
    array = decoded.pixels
    channels = 1 if array.ndim == 2 else array.shape[2]
    facts = ImageFacts(
        dtype=array.dtype.name,
        channels=channels,
        orientation=decoded.orientation,
        transparent=decoded.transparent,
        planes=decoded.planes,
    )
    if modality.kind != "depth":
        check_fits(array, modality, where)
        return replace(facts, low=float(array.min()), high=float(array.max())), ""
    depth = read_depth(array, modality, where)
    note = depth.no_data_note
    return _of_depth(facts, array, depth), f"{modality.name}: {note}" if note else ""


def _of_depth(facts: ImageFacts, array: np.ndarray, depth: DepthImage) -> ImageFacts:
    metres_HW, foreground_HW = depth.metres_HW, depth.measured_HW
    stored_HW = array if array.ndim == 2 else array[:, :, 0]
    seen_HW = foreground_HW & (stored_HW != 0)
    if not seen_HW.any():
        return replace(facts, measured=0, zeros=float(foreground_HW.any()))
    stored = stored_HW[seen_HW]
    step = -(-len(stored) // _MOST_PIXELS)
    low, middle, high = np.quantile(metres_HW[seen_HW][::step], _QUANTILES)
    return replace(
        facts,
        low=float(stored.min()),
        high=float(stored.max()),
        measured=float(foreground_HW.mean()),
        zeros=1 - len(stored) / int(foreground_HW.sum()),
        smallest=float(np.abs(stored.astype(np.float64)).min()),
        middle=float(np.median(stored[::step])),
        metres=(float(low), float(middle), float(high)),
    )
