"""What an encoded image says of itself that decoding leaves out: how its colours are stored, and where it was taken."""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import ExifTags, Image

_PNG_EXIF = b"eXIf"
_PNG_OLD_EXIF = "Raw profile type exif"


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
            if opened.format == "PNG" and _PNG_EXIF not in data and _PNG_OLD_EXIF not in opened.info:
                return Header(
                    opened.mode
                )  # where none stands before the pixels, Pillow would unpack these to look behind
            return Header(opened.mode, bool(opened.getexif().get_ifd(ExifTags.IFD.GPSInfo)))
    except Exception:  # NPY, what Pillow doesn't know, or EXIF that is damaged: the image itself was decoded
        return Header()
