"""How many pieces an encoded image may be made of: counted by their headers, before anything is decoded.

A decoder's time grows with chunks, segments, scans, directories and strips, and a file of a few kilobytes may have any
number of them. Each limit is far above what image software writes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import tifffile

MAX_PNG_CHUNKS = 2**16
"""256 MiB in libpng's chunks of 8 KiB are half as many."""
MAX_JPEG_SCANS = 32
"""A progressive JPEG of three channels has 10, of four 18."""
MAX_JPEG_JUNK = 2**16
"""Segments before the first scan, and bytes that belong to none."""
MAX_TIFF_DIRECTORIES = 2**13
"""Writers that are not told which axis holds the channels make one of each row."""
MAX_TIFF_TAGS = 4096
"""Of one directory; tifffile's own limit."""
MAX_TIFF_TAG_BYTES = 2**22
"""Of all tags that hold numbers or text (raw bytes, such as colour profiles, apart)."""
MAX_TIFF_PARTS = 2**18
"""Strips or tiles: 8192 x 8192 in tiles of 16 x 16."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""Of a segment or scan: neither an escaped 255, a restart nor a fill byte."""
_SCAN, _END = 0xDA, 0xD9
_FIRST_WITH_LENGTH = 0xC0
_RAW_TIFF_TYPES = (1, 6, 7)
_TIFF_TYPE_BYTES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8)
"""By type; 0 is none that is read."""


def check_png_or_jpeg(data: bytes) -> None:
    """Raise ValueError where a PNG has too many chunks, or a JPEG too many scans or segments."""
    if data.startswith(_PNG_SIGNATURE):
        _check_png(data)
    else:
        check_jpeg(data)


def _check_png(data: bytes) -> None:
    position, chunks = len(_PNG_SIGNATURE), 0
    while position + 8 <= len(data):
        chunks += 1
        if chunks > MAX_PNG_CHUNKS:
            raise ValueError(f"it has more than {MAX_PNG_CHUNKS} chunks; save it again with image software")
        position += int.from_bytes(data[position : position + 4], "big") + 12


def check_jpeg(data: bytes) -> None:
    """Raise ValueError where a JPEG has too many scans or segments."""
    position, scans, junk = 2, 0, 0
    while (marker := _JPEG_MARKER.search(data, position)) and (kind := data[marker.end() - 1]) != _END:
        scans += kind == _SCAN
        if scans > MAX_JPEG_SCANS:
            raise ValueError(f"it has more than {MAX_JPEG_SCANS} scans; save it again with image software")
        # Between scans lie the pixels.
        junk += 1 + (marker.start() - position if scans == 0 else 0)
        if junk > MAX_JPEG_JUNK:
            raise ValueError(f"it has more than {MAX_JPEG_JUNK} segments and stray bytes; save it again")
        position = marker.end()
        if kind >= _FIRST_WITH_LENGTH:
            position += int.from_bytes(data[position : position + 2], "big")


def check_tiff_directories(data: bytes) -> None:
    """Raise ValueError where a TIFF has too many directories or too large tags, or tags that share their bytes.

    What is cut short or of no known form is left to the decoder.
    """
    numbers = total = 0
    for directories, entries in enumerate(_tiff_directories(data), start=1):
        if directories > MAX_TIFF_DIRECTORIES:
            raise ValueError(f"it has more than {MAX_TIFF_DIRECTORIES} directories; save one picture alone")
        if len(entries) > MAX_TIFF_TAGS:
            raise ValueError(f"it has {len(entries)} tags, more than the limit of {MAX_TIFF_TAGS}; save it again")
        for kind, count in entries:
            size = count * (_TIFF_TYPE_BYTES[kind] if kind < len(_TIFF_TYPE_BYTES) else 0)
            total += size
            numbers += 0 if kind in _RAW_TIFF_TYPES else size
        if numbers > MAX_TIFF_TAG_BYTES or total > len(data):
            raise ValueError(
                f"its tags claim {numbers} bytes of numbers and text and {total} in all, more than "
                f"{MAX_TIFF_TAG_BYTES}, or than the file has; save it again"
            )


def _tiff_directories(data: bytes) -> Iterator[list[tuple[int, int]]]:
    """Type and count of each tag, directory by directory."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2], "")
    version = struct.unpack_from(order + "H", data, 2)[0] if order and len(data) >= 4 else 0
    if version not in (42, 43):
        return
    large = version == 43
    offset_form, number_form = order + ("Q" if large else "I"), order + ("Q" if large else "H")
    entry = struct.Struct(order + ("2xHQ8x" if large else "2xHI4x"))
    position = 8 if large else 4
    try:
        while position := struct.unpack_from(offset_form, data, position)[0]:
            number = struct.unpack_from(number_form, data, position)[0]
            position += struct.calcsize(number_form)
            yield list(entry.iter_unpack(data[position : position + min(number, MAX_TIFF_TAGS + 1) * entry.size]))
            position += number * entry.size
    except struct.error:
        return


def check_tiff_parts(page: tifffile.TiffPage, pages: int, data: bytes) -> None:
    """Raise ValueError where a TIFF's picture has too many strips or tiles, or JPEG parts of too many scans."""
    parts = pages * len(page.dataoffsets)
    if parts > MAX_TIFF_PARTS:
        raise ValueError(f"it has {parts} strips or tiles, more than the limit of {MAX_TIFF_PARTS}; save it again")
    if page.compression in (tifffile.COMPRESSION.OJPEG, tifffile.COMPRESSION.JPEG):
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
            check_jpeg(data[offset : offset + count])
