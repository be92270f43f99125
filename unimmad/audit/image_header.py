"""What an encoded image says of itself before it is decoded: type, colour mode, EXIF."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import ExifTags, Image

_FIRST_BYTES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\x93NUMPY": "NPY",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
}
_UPRIGHT = 1


@dataclass(frozen=True)
class Header:
    """Of one file."""

    file_type: str
    """By its first bytes; empty where they are of no known type."""
    mode: str = ""
    """Pillow's name of its colours; empty where Pillow doesn't know."""
    orientation: int = _UPRIGHT
    """EXIF's, 1 to 8."""
    has_place: bool = False
    """Whether EXIF says where it was taken."""


def read_header(data: bytes) -> Header:
    """Of an image that was decoded already, so that its header is known to be harmless."""
    file_type = next((name for first, name in _FIRST_BYTES.items() if data.startswith(first)), "")
    if file_type in ("", "NPY"):
        return Header(file_type)
    try:
        with Image.open(io.BytesIO(data)) as opened:
            exif = opened.getexif()
            orientation = exif.get(ExifTags.Base.Orientation, _UPRIGHT)
            known = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else _UPRIGHT
            return Header(file_type, opened.mode, known, bool(exif.get_ifd(ExifTags.IFD.GPSInfo)))
    except Exception:  # what Pillow doesn't know, or EXIF that is damaged: the image itself was decoded
        return Header(file_type)
