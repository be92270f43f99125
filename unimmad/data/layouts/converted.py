"""Images of types that shards do not hold, brought to PNG as they are read: BMP, WebP, and the first frame of a GIF.

What a file is, its bytes tell: another picture of such a name is taken as it is.
"""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from unimmad.data.decode_limits import check_decoded, check_encoded
from unimmad.data.image_type import CONVERTED_TYPES, READ_IN_WORDS, type_of

_FORMATS = {f".{name.lower()}": name.upper() for name in CONVERTED_TYPES}
"""As Pillow calls them, by suffix."""
CONVERTED_SUFFIXES = frozenset(_FORMATS)
_VALUE_BYTES = 4


def as_png(data: bytes, suffix: str, where: str) -> bytes:
    """The same picture as PNG, its palette and EXIF data with it; bytes of a type that shards hold as they are.

    Args:
        data: the file's bytes; may be of another type than its name says.
        suffix: one of ``CONVERTED_SUFFIXES``.
        where: the file, for messages.

    Raises:
        ValueError: does not open, is too large, or a WebP of several frames.
    """
    check_encoded(len(data), where)
    if type_of(data) is not None:
        return data
    try:
        return _as_png(data)
    except UnidentifiedImageError:  # its own message names an object in memory
        reason = f"its bytes are not of {READ_IN_WORDS}"
    except Exception as error:  # broken files make the decoders raise a dozen unrelated types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise ValueError(f"{where}: does not open as {_FORMATS[suffix]} ({reason}); replace or remove it")


def _as_png(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data), formats=tuple(_FORMATS.values())) as image:
        check_decoded(image.height, image.width, image.width * image.height * _VALUE_BYTES)
        if image.format == "WEBP" and getattr(image, "n_frames", 1) > 1:
            raise ValueError("it has several frames; save one of them alone")
        stream = io.BytesIO()
        image.save(stream, format="PNG", exif=image.getexif())
        return stream.getvalue()
