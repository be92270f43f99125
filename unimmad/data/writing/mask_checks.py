"""What a mask marks, and whether that can be meant.

A mask is drawn by people and exported by many programs: inverted, as probabilities, in the alpha channel, by the
numbers of a palette whose colours are all black. Such a mask marks everything or nothing, and an evaluation that
believes it counts every pixel wrong.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unimmad.data.decode import decode, marked_pixels
from unimmad.data.image_type import PNG

MOST_MARKED = 0.9
"""Share of an image that a defect may cover."""
_MOST_FAINT = 0.5
"""Share of an image that values between 0 and half of the largest may cover."""


@dataclass(frozen=True)
class ReadMask:
    """A mask as it is understood."""

    marked_HW: NDArray[np.bool_]
    called: str
    """The file, with what was done to it."""
    as_stored: bool
    """Whether its own bytes, as a PNG, say the same."""
    note: str = ""
    """How it was understood, where that is not how all others are."""
    odd: str = ""
    """Why it cannot be meant so; empty where it can."""


def read_mask(data: bytes, suffix: str, where: str, anomalous: bool, lossy: bool = False) -> ReadMask:
    """Decode a mask by what its bytes are, whatever its name says.

    Args:
        data: the file's bytes.
        suffix: with the dot, lower case.
        where: the file, for messages.
        anomalous: whether its image is.
        lossy: compressed with loss, whatever its bytes are now.

    Raises:
        ValueError: as ``decode_mask_pixels``.
    """
    decoded = decode(data, suffix, where)
    decoded = replace(decoded, lossy=decoded.lossy or lossy)
    marked_HW = marked_pixels(decoded, where)
    called = decoded.called(where)
    is_png = decoded.file_type == PNG and not decoded.lossy
    if anomalous and is_png and decoded.orientation == 1 and (marked_HW.all() or not marked_HW.any()):
        for other_HW, what in _other_readings(data):
            if other_HW.any() and not other_HW.all():
                note = f"{where}: marks by its {what}, {_share(other_HW)} of its image"
                return ReadMask(other_HW, called, False, note)
    return ReadMask(marked_HW, called, is_png, odd=_odd(marked_HW, decoded.pixels, anomalous, decoded.lossy))


def _odd(marked_HW: NDArray[np.bool_], stored: NDArray, anomalous: bool, is_jpeg: bool) -> str:
    """Why a mask cannot be meant as it is read; empty where it can."""
    share = float(marked_HW.mean())
    if not anomalous:
        return f"marks {_share(marked_HW)} of a normal image" if share else ""
    if not share:
        largest = float(stored.max())
        why = f" (a JPEG counts from 128, and its largest value is {largest:g})" if is_jpeg and largest else ""
        return f"marks nothing of an anomalous image{why}"
    largest = float(stored.max())
    faint_HW = (stored > 0) & (stored < largest / 2)
    faint = float((faint_HW if faint_HW.ndim == 2 else faint_HW.all(axis=2)).mean())
    if faint > _MOST_FAINT and not is_jpeg:
        return (
            f"marks {_share(marked_HW)} of its image, {faint:.0%} by values below half of its largest, {largest:g} "
            "(a background that is not 0?)"
        )
    if share > MOST_MARKED:
        return f"marks {_share(marked_HW)} of its image (inverted, or a background that is not 0?)"
    return ""


def _share(marked_HW: NDArray[np.bool_]) -> str:
    return f"{100 * float(marked_HW.mean()):.3g}%"


def _other_readings(data: bytes) -> list[tuple[NDArray[np.bool_], str]]:
    """What a PNG's alpha channel and its palette's numbers mark."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.mode in ("LA", "RGBA"):
            return [(np.asarray(image.getchannel("A")) > 0, "alpha channel")]
        if image.mode == "P":
            return [(np.asarray(image) > 0, "palette's numbers")]
    return []
