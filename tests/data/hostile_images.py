"""Small files that would keep a decoder busy for minutes, or make it fill the memory."""

import io
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image


def png_chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(before: bytes = b"", within: bytes = b"", after: bytes = b"") -> bytes:
    """4 x 4, with chunks before, within and after those of the pixels."""
    pixels = zlib.compress(bytes(4 * 5))
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
    first, rest = png_chunk(b"IDAT", pixels[:4]), png_chunk(b"IDAT", pixels[4:])
    return b"\x89PNG\r\n\x1a\n" + head + before + first + within + rest + after + png_chunk(b"IEND")


def jpeg(progressive: bool = False, side: int = 16) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (side, side), (120, 30, 200)).save(stream, "JPEG", progressive=progressive)
    return stream.getvalue()


def jpeg_of_scans(scans: int) -> bytes:
    """Progressive; the last scan comes again and again."""
    data = jpeg(progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * (scans - data.count(b"\xff\xda")) + data[-2:]


def jpeg_with(inserted: bytes) -> bytes:
    """Behind the first marker."""
    data = jpeg()
    return data[:2] + inserted + data[2:]


def tiff(tags: list[tuple[int, int, int, int | bytes]], body: bytes = b"", next_directory: int = 0) -> bytes:
    """One directory of ``tags`` (code, type, count, value or bytes that lie elsewhere), at byte 8; ``body`` ends it.

    A value of -1 is the position of ``body``.
    """
    elsewhere = b"".join(value for *_, value in tags if isinstance(value, bytes))
    start = 8 + 2 + 12 * len(tags) + 4
    entries, position = b"", start
    for code, kind, count, value in tags:
        at = position if isinstance(value, bytes) else start + len(elsewhere) if value == -1 else value
        position += len(value) if isinstance(value, bytes) else 0
        entries += struct.pack("<HHII", code, kind, count, at)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", next_directory)
    return b"II*\0" + struct.pack("<I", 8) + directory + elsewhere + body


def size_tags(width: int, height: int, compression: int = 1) -> list[tuple[int, int, int, int | bytes]]:
    return [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)]


def tiff_of_strips(rows: int, unpacked: bytes = b"\0") -> bytes:
    """One pixel wide; each row a strip, all of them the same deflated bytes."""
    body = zlib.compress(unpacked)
    head = [*size_tags(1, rows, 8), (278, 4, 1, 1)]
    at = 8 + 2 + 12 * (len(head) + 2) + 4 + 8 * rows
    offsets, counts = struct.pack(f"<{rows}I", *[at] * rows), struct.pack(f"<{rows}I", *[len(body)] * rows)
    return tiff([*head, (273, 4, rows, offsets), (279, 4, rows, counts)], body)


def tiff_of_directories(number: int) -> bytes:
    tags = [*size_tags(2, 2), (273, 4, 1, 8), (278, 4, 1, 2), (279, 4, 1, 4)]
    length = 2 + 12 * len(tags) + 4
    entries = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    after = [8 + length * place for place in range(1, number)] + [0]
    return b"II*\0" + struct.pack("<I", 8) + b"".join(entries + struct.pack("<I", offset) for offset in after)


def tiff_with_shared_tags(tags: int, values: int) -> bytes:
    """Many tags whose values are the same bytes."""
    head = [*size_tags(2, 2), (278, 4, 1, 2), (279, 4, 1, 4)]
    return tiff([*head, *[(273, 4, values, -1)] * tags], bytes(4 * values))


def tiff_of_tile(side: int) -> bytes:
    """8 x 8 pixels in one tile that is far larger."""
    return tiff([*size_tags(8, 8, 8), (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, -1), (325, 4, 1, 9)], bytes(9))


def jpeg_in_tiff(scans: int) -> bytes:
    data = jpeg_of_scans(scans)
    tags = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 7), (262, 3, 1, 6), (277, 3, 1, 3)]
    return tiff([*tags, (278, 4, 1, 16), (273, 4, 1, -1), (279, 4, 1, len(data))], data)


def ome_tiff(frames: int) -> bytes:
    """8 x 8; its description announces many frames."""
    description = (
        '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint8" SizeX="8" SizeY="8" '
        f'SizeZ="{frames}" SizeC="1" SizeT="1"><TiffData/></Pixels></Image></OME>'
    )
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.full((8, 8), 7, dtype=np.uint8), description=description, metadata=None)
    return stream.getvalue()
