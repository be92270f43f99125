"""TIFF: one picture of one page, whatever its compression; what is not a plain picture is refused by name."""

from __future__ import annotations

import io
import math
import re

import numpy as np
import tifffile

from unimmad.data.decode_limits import MAX_CHANNELS, check_tiff
from unimmad.data.decoded import DecodedImage
from unimmad.data.image_structure import check_tiff_directories, check_tiff_parts
from unimmad.data.image_type import TIFF
from unimmad.data.orientation import turned, valid_orientation
from unimmad.data.pillow_images import decode_pillow
from unimmad.serialization.documents import parse_json

_TIFFFILE_COMPRESSIONS = (
    tifffile.COMPRESSION.NONE,
    tifffile.COMPRESSION.LZW,
    tifffile.COMPRESSION.ADOBE_DEFLATE,
    tifffile.COMPRESSION.DEFLATE,
)
"""Pillow, which unpacks into buffers of known size, reads all others."""
_JPEG_COMPRESSIONS = (tifffile.COMPRESSION.OJPEG, tifffile.COMPRESSION.JPEG)
_NO_VENDOR = {"is_lsm": False, "is_ndpi": False, "is_scanimage": False}
"""Formats whose pages tifffile looks for when it opens a file."""

_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _YCBCR, _DEPTH = 0, 1, 2, 3, 6, 51177
_READ = (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _YCBCR, _DEPTH)
_OTHERS = {4: "a transparency mask", 5: "CMYK", 8: "CIELab", 9: "ICCLab", 10: "ITULab", 32803: "a raw sensor pattern"}
_BY_PILLOW = (_PALETTE, _YCBCR)
_PHOTOMETRIC_TAG, _ORIENTATION_TAG = 262, 274
_ALPHA = (1, 2)
"""Kinds of extra samples."""
_SMALLER_COPY, _MASK_PAGE = 1, 4
"""Bits of a page's NewSubfileType."""
_IMAGEJ_IMAGES = re.compile(r"^ImageJ=.*^images=(\d+)", re.DOTALL | re.MULTILINE)


def decode_tiff(data: bytes, planes: bool = False) -> DecodedImage:
    """Decode a TIFF, upright; min-is-white is inverted, and an alpha channel of integers left out.

    Args:
        data: the file's bytes.
        planes: take up to ``MAX_CHANNELS`` pages of one size for the channels of one picture.

    Raises:
        ValueError: it does not open, is too large, has several pages, or colours that only a profile could tell.
    """
    check_tiff_directories(data)
    with tifffile.TiffFile(io.BytesIO(data), **_NO_VENDOR) as tiff:
        pages, shape = _picture(tiff, planes)
        first = pages[0]
        check_tiff_parts(first, len(pages), data)
        photometric = _photometric(first)
        if photometric in _BY_PILLOW or first.compression not in _TIFFFILE_COMPRESSIONS:
            return _by_pillow(data, first)
        check_tiff(pages, data)
        try:
            array = np.stack([page.asarray(maxworkers=1) for page in pages])
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            return _by_pillow(data, first)  # knows LZW without a further package
        array = array.reshape(shape)
        separate = len(pages) == 1 and first.planarconfig == tifffile.PLANARCONFIG.SEPARATE and array.ndim == 3
        if separate or (planes and _planes_first(shape)):
            array = np.moveaxis(array, 0, 2)
        array, transparent = _without_alpha(array, first)
        if photometric == _MIN_IS_WHITE:
            array = _inverted(array, first)
        orientation = valid_orientation(first.tags.valueof(_ORIENTATION_TAG, 1))
        several = separate and array.ndim == 3 and array.shape[2] > 1
        return DecodedImage(turned(array, orientation), TIFF, orientation, transparent=transparent, planes=several)


def _by_pillow(data: bytes, page: tifffile.TiffPage) -> DecodedImage:
    decoded = decode_pillow(data, "TIFF")
    deep = page.bitspersample > 8 and _photometric(page) != _PALETTE
    if deep and decoded.pixels.dtype == np.uint8:
        raise ValueError(f"its {page.bitspersample} bits would be cut to 8; save it without compression, or as PNG")
    # Pillow itself inverts what it makes 8 bits of.
    if _photometric(page) == _MIN_IS_WHITE and decoded.pixels.dtype != np.uint8:
        decoded = decoded.with_pixels(_inverted(decoded.pixels, page))
    lossy = page.compression in _JPEG_COMPRESSIONS
    planes = page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and decoded.pixels.ndim == 3
    return DecodedImage(decoded.pixels, TIFF, decoded.orientation, lossy, decoded.transparent, planes)


def _picture(tiff: tifffile.TiffFile, planes: bool) -> tuple[list[tifffile.TiffPage], tuple[int, ...]]:
    """The pages that make up the picture, and its shape: one, or the rows that some writers make pages of.

    Not tifffile's series: these are built as large as the file's description says.
    """
    first = tiff.pages.first
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage) and _counts(page, first)]
    text = first.shaped_description or "{}"
    if '"truncated": true' in text:
        raise ValueError("it has one page for several planes; save each plane as a page")
    described = parse_json(text, "its description").get("shape", ()) if text.startswith("{") else ()
    shape = tuple(length for length in described if length != 1)
    needed = math.prod(shape) // math.prod(first.shape)
    if not (0 < needed <= len(pages) and needed * math.prod(first.shape) == math.prod(shape)):
        needed, shape = len(pages), (len(pages), *first.shape) if len(pages) > 1 else first.shape
    rows = len(shape) == 3 and shape[2] <= MAX_CHANNELS
    images = max(len(pages) - needed + (1 if rows else needed), _imagej_images(first))
    if images > 1 and not (planes and _planes_first(shape) and needed == len(pages)):
        raise ValueError(
            f"it has {images} pages, which may be modalities, frames or slices; save each as a file of its own, "
            "modalities in one folder each"
        )
    return pages[:needed], shape


def _counts(page: tifffile.TiffPage, first: tifffile.TiffPage) -> bool:
    """Not a smaller copy of the picture, nor its mask."""
    if page is first:
        return True
    smaller = page.imagewidth < first.imagewidth and page.imagelength < first.imagelength
    return not smaller and not page.subfiletype & (_SMALLER_COPY | _MASK_PAGE)


def _imagej_images(page: tifffile.TiffPage) -> int:
    """ImageJ writes large stacks as one page, with all further images behind it."""
    match = _IMAGEJ_IMAGES.search(page.description)
    return int(match[1]) if match else 1


def _planes_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[2] > MAX_CHANNELS >= shape[0]


def _photometric(page: tifffile.TiffPage) -> int:
    """How values are to be seen.

    Raises:
        ValueError: as nothing that is read.
    """
    if _PHOTOMETRIC_TAG not in page.tags:
        return _MIN_IS_BLACK
    photometric = int(page.photometric)
    if photometric not in _READ:
        named = _OTHERS.get(photometric, f"of the unread photometric kind {photometric}")
        raise ValueError(f"its colours are {named}; convert it to RGB or gray by image software")
    return photometric


def _without_alpha(array: np.ndarray, page: tifffile.TiffPage) -> tuple[np.ndarray, float]:
    """The array, and the share of pixels that are not opaque. Real numbers are not a picture: all channels stay."""
    kinds = [int(kind) for kind in page.extrasamples]
    if array.ndim != 3 or array.dtype.kind != "u" or kinds[-1:] == [] or kinds[-1] not in _ALPHA:
        return array, 0.0
    transparent = float((array[:, :, -1] < np.iinfo(array.dtype).max).mean())
    return array[:, :, : -len(kinds)], transparent


def _inverted(array: np.ndarray, page: tifffile.TiffPage) -> np.ndarray:
    if array.dtype.kind == "b":
        return ~array
    if array.dtype.kind != "u":
        raise ValueError(f"its {array.dtype} values are 'min is white', which has a meaning for unsigned integers only")
    return (2**page.bitspersample - 1 - array).astype(array.dtype)
