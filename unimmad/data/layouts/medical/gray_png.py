"""Measured values to the PNG that shards hold: 16 bit gray, with what it shows and its spacing written in it."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unimmad.data.layouts.medical.orientation import Turn

LARGEST = np.iinfo(np.uint16).max
MILLIMETRES_AN_INCH = 25.4


def windowed(values_HW: np.ndarray, limits: tuple[float, float], inverted: bool = False) -> np.ndarray:
    """Values between the window's ``limits`` as uint16 0 to 65535; below and NaN: 0, above: 65535.

    ``inverted``: the other way round (DICOM's MONOCHROME1).
    """
    low, high = limits
    share_HW = np.clip((np.nan_to_num(values_HW.astype(np.float64), nan=low) - low) / (high - low), 0, 1)
    return np.rint((1 - share_HW if inverted else share_HW) * LARGEST).astype(np.uint16)


def gray_png(pixels_HW: np.ndarray, turn: Turn, spacing: tuple[float, float], limits: tuple[float, float]) -> bytes:
    """A PNG whose pHYs and text chunks tell spacing (millimetres between rows, between columns), plane and window.

    Args:
        pixels_HW: uint16, upright.
        turn: what made it so; names the plane.
        spacing: of ``pixels_HW``.
        limits: the values that 0 and 65535 stand for.
    """
    text = PngInfo()
    text.add_text("spacing_mm", f"{spacing[0]:g} {spacing[1]:g}")
    text.add_text("plane", turn.plane)
    text.add_text("window", f"{limits[0]:g} {limits[1]:g}")
    buffer = io.BytesIO()
    dots = (MILLIMETRES_AN_INCH / spacing[1], MILLIMETRES_AN_INCH / spacing[0])
    Image.fromarray(pixels_HW).save(buffer, format="PNG", dpi=dots, pnginfo=text)
    return buffer.getvalue()
