"""Which way up an image is to be seen: cameras store the sensor's rows, and a tag that says how to turn them."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import ExifTags, Image

UPRIGHT = 1
ON_ITS_SIDE = 5
"""From here on height and width change over."""
_ORIENTATIONS = range(1, 9)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation (1 to 8) of an image that Pillow has opened; 1 where it has none, or one of no meaning."""
    try:
        return valid_orientation(image.getexif().get(ExifTags.Base.Orientation, UPRIGHT))
    except Exception:  # broken metadata raise a dozen types, and leave the pixels what they are
        return UPRIGHT


def valid_orientation(value: Any) -> int:
    """``value`` if EXIF gives it a meaning, else 1."""
    return value if isinstance(value, int) and value in _ORIENTATIONS else UPRIGHT


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """The array as it is to be seen.

    Args:
        array: H x W or H x W x C as stored.
        orientation: 1 to 8 as EXIF counts them.

    Returns:
        Contiguous; of 5 to 8 with height and width changed over.
    """
    if orientation == UPRIGHT:
        return array
    if orientation >= ON_ITS_SIDE:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)
