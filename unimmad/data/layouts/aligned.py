"""Images and masks brought to the size of their sample's first image: a shard wants one size a sample.

This is for published sets whose sensors differ in resolution; the model resizes every image to one square anyway.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from unimmad.data.decode import PILLOW_SUFFIXES, decode_image, decode_mask_pixels
from unimmad.data.decode_limits import check_decoded, read_image_file
from unimmad.data.image_structure import check_png_or_jpeg
from unimmad.data.layouts.encode import npy_bytes, png_bytes
from unimmad.data.layouts.source_set import SourceFile
from unimmad.data.orientation import ON_ITS_SIDE, orientation_of


def aligned_image(path: Path, reference: Path) -> SourceFile:
    """``path`` in the size of ``reference``: PNG, or NPY where it is NPY; its own bytes where nothing changes."""
    suffix = ".npy" if path.suffix.lower() == ".npy" else ".png"
    return SourceFile(name=str(path), suffix=suffix, read=partial(_read_image, path, reference))


def joined_mask(masks: Sequence[Path], reference: Path) -> SourceFile:
    """One PNG of 0 and 255, in the size of ``reference``: what any of ``masks`` marks."""
    return SourceFile(name=str(masks[0]), suffix=".png", read=partial(_read_masks, tuple(masks), reference))


def aligned_array(array: np.ndarray, reference: Path) -> np.ndarray:
    """``array`` (H x W or H x W x C) in the size of the picture ``reference``, by nearest neighbour."""
    return _nearest(array, *_size(reference))


def _read_image(path: Path, reference: Path) -> bytes:
    file = SourceFile.of(path)
    data, suffix = file.read(), file.suffix
    array = decode_image(data, suffix, str(path))
    height, width = _size(reference)
    if array.shape[:2] == (height, width) and suffix in (".png", ".npy"):
        return data
    if array.dtype == np.uint16 and array.ndim == 3:
        array = (array >> 8).astype(np.uint8)  # of colours Pillow writes 8 bits
    if array.dtype == np.uint8 and array.shape[:2] != (height, width):
        array = np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.BILINEAR))
    resized = _nearest(array, height, width)
    return npy_bytes(resized) if suffix == ".npy" else png_bytes(resized)


def _read_masks(masks: Sequence[Path], reference: Path) -> bytes:
    height, width = _size(reference)
    marked_HW = np.zeros((height, width), dtype=bool)
    for path in masks:
        file = SourceFile.of(path)
        marked_HW |= _nearest(decode_mask_pixels(file.read(), file.suffix, file.name), height, width)
    return png_bytes(marked_HW.astype(np.uint8) * 255)


def _size(path: Path) -> tuple[int, int]:
    """Height and width, upright; of PNG and JPEG without decoding."""
    if path.suffix.lower() in PILLOW_SUFFIXES:
        data = read_image_file(path)
        try:
            check_png_or_jpeg(data)
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                check_decoded(image.height, image.width, 0)
                on_its_side = orientation_of(image) >= ON_ITS_SIDE
                return (image.width, image.height) if on_its_side else (image.height, image.width)
        except UnidentifiedImageError:  # its own message names an object in memory
            raise ValueError(f"{path}: does not open as PNG or JPEG; replace or remove it") from None
        except Exception as error:  # broken files make Pillow raise a dozen unrelated types
            raise ValueError(f"{path}: does not open as PNG or JPEG ({error}); replace or remove it") from None
    file = SourceFile.of(path)
    height, width = decode_image(file.read(), file.suffix, file.name).shape[:2]
    return height, width


def _nearest(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixel under each new pixel's centre."""
    rows = ((np.arange(height) + 0.5) * array.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * array.shape[1] / width).astype(int)
    return array[rows[:, None], columns]
