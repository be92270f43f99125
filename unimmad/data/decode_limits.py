"""How large one image may be: checked from its header, before anything is decoded.

A file of a few kilobytes can claim, or unpack to, more than any memory holds.
"""

from __future__ import annotations

import io
import math
import stat
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from unimmad.serialization.documents import read_limited

MAX_MEMBER_BYTES = 2**28
"""An encoded image: 256 MiB."""
MAX_PIXELS = 2**26
"""Height times width: 8192 x 8192. Below Pillow's own limit (``Image.MAX_IMAGE_PIXELS``), which holds as well."""
MAX_DECODED_BYTES = 2**30
"""An image as an array: 1 GiB."""
MAX_CHANNELS = 16
"""An array whose last axis is longer is not an H x W x channels image."""

_ZLIB_BLOCK = 2**20
_DEFLATE_SLACK = 2
"""Some writers fill up the last strip."""
_DEFLATE = (tifffile.COMPRESSION.ADOBE_DEFLATE, tifffile.COMPRESSION.DEFLATE)


def check_encoded(size: int, where: str) -> None:
    """Raise ValueError where a file or member of ``size`` bytes is too large to be read."""
    if size > MAX_MEMBER_BYTES:
        raise ValueError(f"{where}: {size} bytes are more than an image may have ({MAX_MEMBER_BYTES}); make it smaller")


def read_image_file(path: Path) -> bytes:
    """An image file's bytes.

    Raises:
        ValueError: a device or a pipe, which would never end, or too large.
        OSError: it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: is not a plain file; replace or remove it")
    check_encoded(status.st_size, str(path))
    return read_limited(path, MAX_MEMBER_BYTES)


def check_decoded(height: int, width: int, total_bytes: int) -> None:
    """Raise ValueError where the array that a header announces is too large."""
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS}")
    if total_bytes > MAX_DECODED_BYTES:
        raise ValueError(f"{total_bytes} bytes decoded are more than the limit of {MAX_DECODED_BYTES}")


def check_npy(data: bytes) -> None:
    """Check an NPY file's header: numpy makes room for what it announces before it reads the first value.

    Raises:
        ValueError: no NPY header, Python objects, too large, or more values announced than follow.
    """
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"NPY version {version} holds no plain numbers")
    shape, _, dtype = readers[version](stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    total = math.prod(shape) * dtype.itemsize
    height, width = shape[:2] if len(shape) >= 2 else (1, math.prod(shape))
    check_decoded(height, width, total)
    if total > len(data) - stream.tell():
        raise ValueError("it ends before its last value")


def check_tiff(pages: Sequence[tifffile.TiffPage], data: bytes) -> None:
    """Check the announced size of a TIFF's picture, its planes' pages together, and what its deflated parts unpack to.

    Raises:
        ValueError: too large.
    """
    page = pages[0]
    if page.dtype is None:
        raise ValueError(f"its values have {page.bitspersample} bits")
    check_decoded(page.imagelength, page.imagewidth, len(pages) * math.prod(page.shape) * page.dtype.itemsize)
    check_decoded(page.tilelength, page.tilewidth, page.tilelength * page.tilewidth * page.dtype.itemsize)
    if page.compression in _DEFLATE:
        offsets = [offset for part in pages for offset in part.dataoffsets]
        counts = [count for part in pages for count in part.databytecounts]
        announced = math.prod(page.chunks) * page.dtype.itemsize * len(offsets)
        _check_deflated(data, offsets, counts, _DEFLATE_SLACK * announced + _ZLIB_BLOCK)


def _check_deflated(data: bytes, offsets: Sequence[int], counts: Sequence[int], limit: int) -> None:
    """Unpack block by block, keeping nothing: tifffile would unpack each part whole, however long it gets."""
    total = 0
    for offset, count in zip(offsets, counts, strict=True):
        unpacker = zlib.decompressobj()
        rest = data[offset : offset + count]
        while rest and not unpacker.eof:
            total += len(unpacker.decompress(rest, _ZLIB_BLOCK))
            if total > limit:
                raise ValueError(f"its strips or tiles unpack to more than the limit of {limit} bytes")
            rest = unpacker.unconsumed_tail
