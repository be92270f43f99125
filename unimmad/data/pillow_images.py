"""PNG, JPEG and the TIFFs that tifffile does not unpack, by Pillow: every bit kept, alpha apart, no colours guessed."""

from __future__ import annotations

import io
import re
import struct
import sys
import zlib
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from unimmad.data.decode_limits import check_decoded
from unimmad.data.decoded import DecodedImage
from unimmad.data.orientation import UPRIGHT, orientation_of, turned

_VALUE_BYTES = 4
"""No Pillow mode needs more a value."""
_WITHOUT_ALPHA = {"LA": "L", "La": "L", "RGBA": "RGB", "RGBa": "RGB", "PA": "RGB", "P": "RGB", "YCbCr": "RGB", "1": "L"}
_AS_THEY_ARE = frozenset({"L", "RGB", "RGBX", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
_SIXTEEN_BIT_COLOURS = re.compile(r"(RGB[AXa]?;16)[BLN]")
"""Raw modes of which Pillow keeps each value's upper byte alone."""
_PNG_DEPTH_AND_TYPE = slice(24, 26)
_PNG_HEADER = slice(12, 29)
_PNG_HEADER_SUM = slice(29, 33)

Format = Literal["PNG", "JPEG", "TIFF"]
_TileArguments = tuple[Any, ...] | str | None


def decode_pillow(data: bytes, format_: Format) -> DecodedImage:
    """Decode by Pillow, upright.

    Palettes become colours and 1-bit images 0 and 255; an alpha channel is left out, and its share that is not opaque
    told; 16 bits a channel stay 16.

    Raises:
        ValueError: not of that format, too large, several frames, or colours that only a profile tells (CMYK, Lab).
    """
    if format_ == "PNG" and data[_PNG_DEPTH_AND_TYPE] == b"\x10\x04":
        return _gray_with_alpha(data)
    with _opened(data, format_) as image:
        check_decoded(image.height, image.width, image.width * image.height * len(image.getbands()) * _VALUE_BYTES)
        if format_ == "PNG" and getattr(image, "n_frames", 1) > 1:
            raise ValueError("it is an animation; save one frame as a file of its own")
        if image.mode not in _WITHOUT_ALPHA and image.mode not in _AS_THEY_ARE:
            raise ValueError(
                f"its colours are {image.mode}, whose look depends on a profile; convert it to RGB by image software"
            )
        deep = any(_SIXTEEN_BIT_COLOURS.fullmatch(str(_raw_mode(tile.args))) for tile in image.tile)
        orientation = orientation_of(image)
        pixels, alpha_HW = _sixteen_bits(data, format_) if deep else _eight_bits(image)
        left = orientation if format_ != "TIFF" else UPRIGHT  # of a TIFF Pillow itself carries the tag out
    transparent = 0.0 if alpha_HW is None else float((alpha_HW < _largest(alpha_HW)).mean())
    return DecodedImage(turned(pixels, left), format_, orientation, format_ == "JPEG", transparent)


def _opened(data: bytes, format_: Format) -> ImageFile.ImageFile:
    try:
        return Image.open(io.BytesIO(data), formats=(format_,))
    except UnidentifiedImageError:  # its own message names an object in memory
        raise ValueError(f"its bytes are not a whole {format_} image") from None


def _eight_bits(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels without alpha, and the alpha."""
    alpha_HW = None
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA"):
        alpha_HW = np.asarray(image.getchannel("A"))
    elif image.mode == "P" and "transparency" in image.info:
        alpha_HW = np.asarray(image.convert("RGBA").getchannel("A"))
    plain = image.convert(_WITHOUT_ALPHA[image.mode]) if image.mode in _WITHOUT_ALPHA else image
    pixels = np.asarray(plain)
    return pixels[:, :, :3] if plain.mode == "RGBX" else pixels, alpha_HW


def _sixteen_bits(data: bytes, format_: Format) -> tuple[np.ndarray, np.ndarray | None]:
    """Read twice, once for each byte of the values: uint16, H x W x 3, and the alpha."""
    big_endian = format_ == "PNG" or sys.byteorder == "big"
    halves = []
    for order in ("B", "L") if big_endian else ("L", "B"):
        with _opened(data, format_) as image:
            image.tile = [tile._replace(args=_with_order(tile.args, order)) for tile in image.tile]
            halves.append(np.asarray(image).astype(np.uint16))
            mode = image.mode
    values_HWC = halves[0] * 256 + halves[1]
    return values_HWC[:, :, :3], values_HWC[:, :, 3] if mode in ("RGBA", "RGBa") else None


def _raw_mode(arguments: _TileArguments) -> object:
    """Of a tile: alone, or first among others."""
    return arguments[0] if isinstance(arguments, tuple) and arguments else arguments


def _with_order(arguments: _TileArguments, order: str) -> _TileArguments:
    raw_mode = _raw_mode(arguments)
    if not _SIXTEEN_BIT_COLOURS.fullmatch(str(raw_mode)):
        raise ValueError("its planes are stored apart, with 16 bits a channel; save it as an uncompressed TIFF or PNG")
    changed = f"{str(raw_mode)[:-1]}{order}"
    return (changed, *arguments[1:]) if isinstance(arguments, tuple) else changed


def _gray_with_alpha(data: bytes) -> DecodedImage:
    """A PNG of 16-bit gray and alpha: four bytes a pixel, read as if they were RGBA of 8 bits."""
    header = bytearray(data)
    header[_PNG_DEPTH_AND_TYPE] = b"\x08\x06"
    header[_PNG_HEADER_SUM] = struct.pack(">I", zlib.crc32(header[_PNG_HEADER]))
    with _opened(bytes(header), "PNG") as image:
        check_decoded(image.height, image.width, image.width * image.height * 4 * _VALUE_BYTES)
        orientation = orientation_of(image)
        bytes_HW4 = np.asarray(image).astype(np.uint16)
    gray_HW, alpha_HW = (bytes_HW4[:, :, first] * 256 + bytes_HW4[:, :, first + 1] for first in (0, 2))
    return DecodedImage(turned(gray_HW, orientation), "PNG", orientation, transparent=float((alpha_HW < 65535).mean()))


def _largest(array: np.ndarray) -> int:
    return int(np.iinfo(array.dtype).max)
