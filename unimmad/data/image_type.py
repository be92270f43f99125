"""What type an image file is: by its first bytes, since names lie (a JPEG called .png)."""

from __future__ import annotations

PNG, JPEG, TIFF, NPY = "PNG", "JPEG", "TIFF", "NPY"
BMP, WEBP, GIF = "BMP", "WebP", "GIF"
STORED_TYPES = (PNG, JPEG, TIFF, NPY)
"""Those that shards hold."""
CONVERTED_TYPES = (BMP, WEBP, GIF)
"""Those that are read besides of one's own files, by names that end in them, and brought to PNG."""
READ_TYPES = (*STORED_TYPES, *CONVERTED_TYPES)
READ_IN_WORDS = f"{', '.join(READ_TYPES[:-1])} or {READ_TYPES[-1]}"

_READ = (
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"\xff\xd8\xff", JPEG),
    (b"II*\0", TIFF),
    (b"MM\0*", TIFF),
    (b"II+\0", TIFF),
    (b"MM\0+", TIFF),
    (b"\x93NUMPY", NPY),
)
_PNG_BIT_DEPTH = 24
"""The byte of a PNG that says it."""
_OTHERS = (
    (b"GIF8", GIF),
    (b"BM", BMP),
    (b"\0\0\0\x0cjP", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"\x89HDF", "HDF5"),
    (b"SIMPLE  =", "FITS"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "ZIP or NPZ"),
    (b"\x1f\x8b", "gzip"),
    (b"<", "HTML or SVG text"),
    (b"version https://git-lfs", "Git LFS pointer"),
)
_ISO_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC", b"avif": "AVIF"}


def type_of(data: bytes) -> str | None:
    """``PNG``, ``JPEG``, ``TIFF`` or ``NPY``; None for anything else."""
    return next((name for start, name in _READ if data.startswith(start)), None)


def other_type_of(data: bytes) -> str:
    """What a file that is not read seems to be, for messages; empty where nothing tells."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WEBP
    if data[4:8] == b"ftyp":
        return _ISO_BRANDS.get(data[8:12], "HEIC, AVIF or video")
    if data[128:132] == b"DICM":
        return "DICOM"
    return next((name for start, name in _OTHERS if data.startswith(start)), "")


def is_eight_bits(data: bytes) -> bool:
    """Whether an image's first bytes tell that it is decoded to 8 bits; of a TIFF or NPY they tell nothing."""
    file_type = type_of(data)
    return file_type == JPEG or (file_type == PNG and len(data) > _PNG_BIT_DEPTH and data[_PNG_BIT_DEPTH] <= 8)
