"""Bytes to arrays, by a closed list of types: PNG, JPEG, TIFF, NPY. Nothing is ever unpickled."""

from __future__ import annotations

import io

import numpy as np

from unimmad.data.decode_limits import MAX_CHANNELS, check_encoded, check_npy
from unimmad.data.decoded import DecodedImage
from unimmad.data.image_structure import check_png_or_jpeg
from unimmad.data.image_type import CONVERTED_TYPES, NPY, READ_IN_WORDS, TIFF, other_type_of, type_of
from unimmad.data.pillow_images import decode_pillow
from unimmad.data.tiff_images import decode_tiff
from unimmad.serialization.text import one_line

PILLOW_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
IMAGE_SUFFIXES = PILLOW_SUFFIXES | TIFF_SUFFIXES | {".npy"}
"""Of the files that are looked at; what a file is, its bytes tell."""

JPEG_MASK_THRESHOLD = 128
"""A JPEG mask has ripples round every edge: it counts from half of full scale, all other masks where > 0."""

_PNG_COLOUR_TYPE = 25
"""The byte of a PNG that says it."""
_PNG_GRAY_TYPES = (0, 4)


def decode_image(data: bytes, suffix: str, where: str, planes: bool = False) -> np.ndarray:
    """The pixels of :func:`decode`, with its arguments and errors."""
    return decode(data, suffix, where, planes).pixels


def decode(data: bytes, suffix: str, where: str, planes: bool = False) -> DecodedImage:
    """Decode one image, of the type that its bytes tell, and turn it upright.

    Palettes become colours, an alpha channel is left out (not of NPY and of real numbers), 1-bit images become 0 and
    255, min-is-white is inverted. Sizes are checked against ``decode_limits`` before anything is decoded.

    Args:
        data: the file's bytes.
        suffix: with the dot, lower case; one of ``IMAGE_SUFFIXES``.
        where: the file (and sample), for messages.
        planes: take the pages of a TIFF for channels; else several pages are refused.

    Returns:
        H x W or H x W x C, of any numeric dtype as stored; bool arrays become uint8 0 and 255.

    Raises:
        ValueError: unknown type, does not open, is not one 2-D image, has colours that are not read, or is too large.
    """
    if suffix not in IMAGE_SUFFIXES:
        raise ValueError(
            f"{where}: type {one_line(suffix) or '(none)'} is not read; use one of {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    check_encoded(len(data), where)
    file_type = type_of(data)
    if file_type is None:
        reason = _not_read(data)
        raise ValueError(f"{where}: does not open as {suffix[1:].upper()} ({reason}); convert, replace or remove it")
    try:
        decoded = _decode(data, file_type, planes)
    except Exception as error:  # broken files make the decoders raise a dozen unrelated types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{where}: does not open as {file_type} ({reason}); replace or remove it") from None
    return decoded.with_pixels(as_image(decoded.pixels, where))


def _not_read(data: bytes) -> str:
    """Why bytes of none of the types that are decoded here are refused."""
    other = other_type_of(data)
    if other in CONVERTED_TYPES:
        return f"its bytes are those of {other}, which is read where a file's name ends in .{other.lower()}"
    return f"its bytes are {f'those of {other}, ' if other else ''}not of {READ_IN_WORDS}"


def _decode(data: bytes, file_type: str, planes: bool) -> DecodedImage:
    if file_type == NPY:
        check_npy(data)
        return DecodedImage(np.load(io.BytesIO(data), allow_pickle=False), NPY)
    if file_type == TIFF:
        return decode_tiff(data, planes)
    check_png_or_jpeg(data)
    return decode_pillow(data, "PNG" if file_type == "PNG" else "JPEG")


def has_one_channel(data: bytes, suffix: str, where: str) -> bool:
    """Whether an image is gray; of PNG, the usual type, told by its header alone.

    Raises:
        ValueError: as ``decode``, as far as it looks.
    """
    if type_of(data) == "PNG" and suffix in IMAGE_SUFFIXES and len(data) > _PNG_COLOUR_TYPE:
        return data[_PNG_COLOUR_TYPE] in _PNG_GRAY_TYPES
    return decode_image(data, suffix, where).ndim == 2


def as_image(array: np.ndarray, where: str) -> np.ndarray:
    """An array in the form that all images have: this machine's byte order, no bool, no axis of one channel.

    Raises:
        ValueError: it is not H x W or H x W x channels, or holds no numbers.
    """
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] > MAX_CHANNELS):
        raise ValueError(f"{where}: its shape is {array.shape}; wanted H x W or H x W x channels")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{where}: its values are {array.dtype}; wanted integers or real numbers")
    if array.dtype.kind == "b":
        array = array.astype(np.uint8) * 255
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array


def decode_mask_pixels(data: bytes, suffix: str, where: str) -> np.ndarray:
    """Decode a mask at full resolution: bool H x W, True where any channel is > 0 (JPEG: at least 128).

    Raises:
        ValueError: as ``decode_image``, or NaN in it, which marks neither.
    """
    return marked_pixels(decode(data, suffix, where), where)


def marked_pixels(decoded: DecodedImage, where: str) -> np.ndarray:
    """:func:`decode_mask_pixels` of a mask that is decoded already."""
    array = decoded.pixels
    if np.isnan(array).any():
        raise ValueError(f"{where}: the mask has NaN in it; write 0 for normal pixels and more for anomalous ones")
    marked = array >= JPEG_MASK_THRESHOLD if decoded.lossy else array > 0
    return np.asarray(marked.any(axis=2)) if marked.ndim == 3 else marked


def check_same_size(where: str, shape: tuple[int, ...], other_where: str, other_shape: tuple[int, ...]) -> None:
    """Raise ValueError, naming both files and sizes, unless H and W are the same."""
    if shape[:2] != other_shape[:2]:
        raise ValueError(
            f"{where} is {shape[1]} x {shape[0]} pixels (width x height), but {other_where} is "
            f"{other_shape[1]} x {other_shape[0]}: all images and the mask of a sample must have one size; "
            "align them, or leave the sample out"
        )
