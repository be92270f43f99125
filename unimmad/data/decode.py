"""Bytes to arrays, by a closed list of types: PNG, JPEG, TIFF, NPY. Nothing is ever unpickled."""

from __future__ import annotations

import io
import math

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from unimmad.data.decode_limits import check_decoded, check_encoded, check_npy, check_tiff
from unimmad.data.image_structure import check_png_or_jpeg, check_tiff_directories, check_tiff_parts
from unimmad.serialization.documents import parse_json
from unimmad.serialization.text import one_line

PILLOW_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
IMAGE_SUFFIXES = PILLOW_SUFFIXES | TIFF_SUFFIXES | {".npy"}

MAX_CHANNELS = 16
"""An array whose last axis is longer is not an H x W x channels image."""
JPEG_MASK_THRESHOLD = 128
"""A JPEG mask has ripples round every edge: it counts from half of full scale, all other masks where > 0."""

_TIFFFILE_COMPRESSIONS = (
    tifffile.COMPRESSION.NONE,
    tifffile.COMPRESSION.LZW,
    tifffile.COMPRESSION.ADOBE_DEFLATE,
    tifffile.COMPRESSION.DEFLATE,
)
"""Pillow, which unpacks into buffers of known size, reads all others."""
_NO_VENDOR = {"is_lsm": False, "is_ndpi": False, "is_scanimage": False}
"""Formats whose pages tifffile looks for when it opens a file."""
_PILLOW_VALUE_BYTES = 4
"""No Pillow mode needs more a value."""

_ALPHA = {"LA": "L", "La": "L", "RGBA": "RGB", "RGBa": "RGB", "CMYK": "RGB", "YCbCr": "RGB", "1": "L"}


def decode_image(data: bytes, suffix: str, where: str) -> np.ndarray:
    """Decode one image.

    Palettes become colours, an alpha channel is dropped (PNG, JPEG), 1-bit images become 0 and 255. Sizes are checked
    against ``limits`` before anything is decoded.

    Args:
        data: the file's bytes.
        suffix: with the dot, lower case; one of ``IMAGE_SUFFIXES``.
        where: the file (and sample), for messages.

    Returns:
        H x W or H x W x C, of any numeric dtype as stored; bool arrays become uint8 0 and 255.

    Raises:
        ValueError: unknown type, does not open, is not a 2-D image, or is too large.
    """
    if suffix not in IMAGE_SUFFIXES:
        raise ValueError(
            f"{where}: type {one_line(suffix) or '(none)'} is not read; use one of {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    check_encoded(len(data), where)
    try:
        array = _decode(data, suffix)
    except Exception as error:  # broken files make the decoders raise a dozen unrelated types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{where}: does not open as {suffix[1:].upper()} ({reason}); replace or remove it") from None
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] > MAX_CHANNELS):
        raise ValueError(f"{where}: its shape is {array.shape}; wanted H x W or H x W x channels")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{where}: its values are {array.dtype}; wanted integers or real numbers")
    if array.dtype.kind == "b":
        array = array.astype(np.uint8) * 255
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _decode(data: bytes, suffix: str) -> np.ndarray:
    if suffix in PILLOW_SUFFIXES:
        check_png_or_jpeg(data)
        return _decode_pillow(data, ("PNG", "JPEG"))
    if suffix == ".npy":
        check_npy(data)
        return np.load(io.BytesIO(data), allow_pickle=False)
    return _decode_tiff(data)


def _decode_pillow(data: bytes, formats: tuple[str, ...]) -> np.ndarray:
    try:
        opened = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError:  # its own message names an object in memory
        raise ValueError(f"its bytes are not a {' or '.join(formats)} image") from None
    with opened as image:
        values = image.width * image.height * len(image.getbands())
        check_decoded(image.height, image.width, values * _PILLOW_VALUE_BYTES)
        if image.mode in ("P", "PA"):
            return np.asarray(image.convert("RGB"))
        if image.mode in _ALPHA:
            return np.asarray(image.convert(_ALPHA[image.mode]))
        return np.asarray(image)


def _decode_tiff(data: bytes) -> np.ndarray:
    check_tiff_directories(data)
    with tifffile.TiffFile(io.BytesIO(data), **_NO_VENDOR) as tiff:
        pages, shape = _picture(tiff)
        first = pages[0]
        check_tiff_parts(first, len(pages), data)
        palette = int(first.photometric) == int(tifffile.PHOTOMETRIC.PALETTE)
        if palette or first.compression not in _TIFFFILE_COMPRESSIONS:
            return _decode_pillow(data, ("TIFF",))
        check_tiff(pages, data)
        try:
            array = np.stack([page.asarray(maxworkers=1) for page in pages])
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            return _decode_pillow(data, ("TIFF",))  # knows LZW and JPEG compression without a further package
    array = array.reshape(shape)
    planes_first = array.ndim == 3 and array.shape[2] > MAX_CHANNELS and array.shape[0] <= MAX_CHANNELS
    return np.moveaxis(array, 0, 2) if planes_first else array


def _picture(tiff: tifffile.TiffFile) -> tuple[list[tifffile.TiffPage], tuple[int, ...]]:
    """The pages that make up the first picture, and its shape.

    Not tifffile's series: these are built as large as the file's description says.
    """
    first = tiff.pages.first
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage) and page.hash == first.hash]
    text = first.shaped_description or "{}"
    if '"truncated": true' in text:
        raise ValueError("it has one page for several planes; save each plane as a page")
    described = parse_json(text, "its description").get("shape", ()) if text.startswith("{") else ()
    shape = tuple(length for length in described if length != 1)
    needed = math.prod(shape) // math.prod(first.shape)
    if 0 < needed <= len(pages) and needed * math.prod(first.shape) == math.prod(shape):
        return pages[:needed], shape
    return pages, (len(pages), *first.shape) if len(pages) > 1 else first.shape


def decode_mask_pixels(data: bytes, suffix: str, where: str) -> np.ndarray:
    """Decode a mask at full resolution: bool H x W, True where any channel is > 0 (JPEG: at least 128).

    Raises:
        ValueError: as ``decode_image``, or NaN in it, which marks neither.
    """
    array = decode_image(data, suffix, where)
    if np.isnan(array).any():
        raise ValueError(f"{where}: the mask has NaN in it; write 0 for normal pixels and more for anomalous ones")
    marked = array >= JPEG_MASK_THRESHOLD if suffix in (".jpg", ".jpeg") else array > 0
    return np.asarray(marked.any(axis=2)) if marked.ndim == 3 else marked


def check_same_size(where: str, shape: tuple[int, ...], other_where: str, other_shape: tuple[int, ...]) -> None:
    """Raise ValueError, naming both files and sizes, unless H and W are the same."""
    if shape[:2] != other_shape[:2]:
        raise ValueError(
            f"{where} is {shape[1]} x {shape[0]} pixels (width x height), but {other_where} is "
            f"{other_shape[1]} x {other_shape[0]}: all images and the mask of a sample must have one size; "
            "align them, or leave the sample out"
        )
