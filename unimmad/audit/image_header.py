"""What an encoded image says of itself that decoding leaves out: how its colours are stored, and where it was taken."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import ExifTags, Image


@dataclass(frozen=True)
class Header:
    """Of one file."""

    mode: str = ""
    """Pillow's name of its colours; empty where Pillow doesn't know."""
    has_place: bool = False
    """Whether EXIF says where it was taken."""


def read_header(data: bytes) -> Header:
    """Of an image that was decoded already, so that its header is known to be harmless."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "TIFF")) as opened:
            return Header(opened.mode, bool(opened.getexif().get_ifd(ExifTags.IFD.GPSInfo)))
    except Exception:  # NPY, what Pillow doesn't know, or EXIF that is damaged: the image itself was decoded
        return Header()
