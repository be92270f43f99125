"""What an image file means: which way up, how many bits, which colours, how many pages."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import tifffile
from hostile_images import png_chunk
from PIL import Image, ImageOps

from unimmad.data import tiff_images
from unimmad.data.decode import decode, decode_image, decode_mask_pixels
from unimmad.data.image_type import CONVERTED_TYPES
from unimmad.data.layouts.encode import npy_bytes

NOISE = np.random.default_rng(0).integers(0, 2**16, (20, 30, 4), dtype=np.uint16)
"""H x W x C of every value that 16 bits have."""
EIGHT = (NOISE >> 8).astype(np.uint8)


def by_pillow(image: Image.Image, format_: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def png16(array_HWC: np.ndarray, interlaced: bool = False) -> bytes:
    """A PNG of 16 bits a channel whose rows go through all five filters."""
    height, width, channels = array_HWC.shape
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = b""
    for top, left, down, right in passes:
        part = array_HWC[top::down, left::right].astype(">u2")
        step = 2 * channels
        above = np.zeros(part.shape[1] * step + step, dtype=np.int64)
        for number, row in enumerate(part):
            now = np.concatenate([np.zeros(step, np.uint8), np.frombuffer(row.tobytes(), np.uint8)]).astype(np.int64)
            a, b, c = now[:-step], above[step:], above[:-step]
            p = a + b - c
            near = np.stack([abs(p - a), abs(p - b), abs(p - c)]).argmin(axis=0)
            guess = [0 * a, a, b, (a + b) // 2, np.choose(near, [a, b, c])][number % 5]
            rows += bytes([number % 5]) + ((now[step:] - guess) % 256).astype(np.uint8).tobytes()
            above = now
    colour = {2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, int(interlaced))
    return (
        b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND")
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_type_is_turned_as_its_tag_says(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(EIGHT[:, :, :3])
    tag = [(274, "H", 1, orientation, True)]
    for data, suffix in [
        (by_pillow(stored, "PNG", exif=exif), ".png"),
        (tiff(EIGHT[:, :, :3], photometric="rgb", extratags=tag), ".tif"),
        (by_pillow(stored, "TIFF", exif=exif, compression="tiff_lzw"), ".tif"),
        (by_pillow(stored, "JPEG", exif=exif, quality=95), ".jpg"),
    ]:
        with Image.open(io.BytesIO(data)) as image:
            upright = np.asarray(ImageOps.exif_transpose(image))
        expected = np.asarray(ImageOps.exif_transpose(_tagged(stored, exif))) if suffix != ".jpg" else upright
        found = decode(data, suffix, "x")
        np.testing.assert_array_equal(found.pixels, expected)
        assert found.orientation == orientation
        assert bool(found.notes) is (orientation != 1)
    colours = decode_image(packed(NOISE[:, :, :3], 2, orientation=orientation), ".tif", "x")
    high = Image.fromarray((NOISE[:, :, :3] >> 8).astype(np.uint8))
    np.testing.assert_array_equal(colours >> 8, np.asarray(ImageOps.exif_transpose(_tagged(high, exif))))
    deep = tiff(NOISE[:, :, 0], extratags=tag)
    assert decode_image(deep, ".tif", "x").shape == ((20, 30) if orientation < 5 else (30, 20))
    mask = np.zeros((20, 30), dtype=np.uint8)
    mask[2:5, 3:9] = 255
    marked = decode_mask_pixels(by_pillow(Image.fromarray(mask), "PNG", exif=exif), ".png", "m")
    np.testing.assert_array_equal(marked, np.asarray(ImageOps.exif_transpose(_tagged(Image.fromarray(mask), exif))) > 0)


def _tagged(image: Image.Image, exif: Image.Exif) -> Image.Image:
    tagged = image.copy()
    tagged.getexif()[274] = exif[274]
    return tagged


def test_a_broken_tag_turns_nothing() -> None:
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        found = decode(by_pillow(Image.fromarray(EIGHT[:, :, :3]), "PNG", exif=exif), ".png", "x")
        np.testing.assert_array_equal(found.pixels, EIGHT[:, :, :3])


@pytest.mark.parametrize("interlaced", [False, True])
def test_png_of_16_bits_a_channel_keeps_them(interlaced: bool) -> None:
    np.testing.assert_array_equal(decode_image(png16(NOISE[:, :, :3], interlaced), ".png", "x"), NOISE[:, :, :3])
    found = decode(png16(NOISE, interlaced), ".png", "x")
    np.testing.assert_array_equal(found.pixels, NOISE[:, :, :3])
    assert found.transparent > 0.99
    found = decode(png16(NOISE[:, :, :2], interlaced), ".png", "x")
    np.testing.assert_array_equal(found.pixels, NOISE[:, :, 0])
    assert found.transparent > 0.99
    opaque = np.full_like(NOISE, 2**16 - 1)
    assert not decode(png16(opaque, interlaced), ".png", "x").notes


def packed(
    array: np.ndarray, photometric: int, extra: tuple[int, ...] = (), order: str = "<", orientation: int = 1
) -> bytes:
    """A TIFF in one strip of PackBits, which Pillow has to read."""
    bits, samples = array.dtype.itemsize * 8, 1 if array.ndim == 2 else array.shape[2]
    strip = b"".join(_packbits(row.astype(row.dtype.newbyteorder(order)).tobytes()) for row in array)
    tags = [(256, array.shape[1]), (257, array.shape[0]), (258, bits), (259, 32773), (262, photometric)]
    tags += [(273, -1), (274, orientation), (277, samples), (278, array.shape[0]), (279, len(strip))]
    tags += [(338, extra[0])] if extra else []
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b""
    for code, value in tags:
        if code == 258 and samples > 2:
            entries += struct.pack(order + "HHII", code, 3, samples, start)
        elif code in (258, 259, 262, 274, 277, 338):
            entries += struct.pack(order + "HHIHH", code, 3, 1, value, bits if code == 258 and samples == 2 else 0)
        else:
            entries += struct.pack(order + "HHII", code, 4, 1, start + 2 * samples if value == -1 else value)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return (
        head
        + struct.pack(order + "H", len(tags))
        + entries
        + bytes(4)
        + struct.pack(order + "H", bits) * samples
        + strip
    )


def _packbits(row: bytes) -> bytes:
    return b"".join(bytes([len(row[i : i + 128]) - 1]) + row[i : i + 128] for i in range(0, len(row), 128))


@pytest.mark.parametrize("order", ["<", ">"])
def test_compressed_tiff_of_16_bits_keeps_them(order: str) -> None:
    for channels, extra in [(3, ()), (4, (2,)), (4, (0,))]:
        data = packed(NOISE[:, :, :channels], 2, extra, order)
        np.testing.assert_array_equal(decode_image(data, ".tif", "x"), NOISE[:, :, :3], err_msg=f"{channels} {extra}")
    np.testing.assert_array_equal(decode_image(packed(NOISE[:, :, 0], 1, (), order), ".tif", "x"), NOISE[:, :, 0])
    np.testing.assert_array_equal(decode_image(packed(EIGHT[:, :, :3], 2, (), order), ".tif", "x"), EIGHT[:, :, :3])


@pytest.mark.parametrize(
    "encode",
    [lambda array: tiff(array, photometric="miniswhite"), lambda array: packed(array, 0)],
    ids=["plain", "packed"],
)
def test_min_is_white_is_inverted(encode: Callable[[np.ndarray], bytes]) -> None:
    for array in (EIGHT[:, :, 0], NOISE[:, :, 0]):
        np.testing.assert_array_equal(decode_image(encode(array), ".tif", "x"), np.iinfo(array.dtype).max - array)
    bits = tiff(EIGHT[:, :, 0] > 128, photometric="miniswhite")
    np.testing.assert_array_equal(decode_image(bits, ".tif", "x"), np.where(EIGHT[:, :, 0] > 128, 0, 255))
    with pytest.raises(ValueError, match="min is white"):
        decode_image(tiff(EIGHT[:, :, 0].astype(np.float32), photometric="miniswhite"), ".tif", "x")


def test_colours_that_only_a_profile_could_tell_are_refused() -> None:
    cmyk = Image.fromarray(EIGHT[:, :, :3]).convert("CMYK")
    for data, suffix, named in [
        (by_pillow(cmyk, "JPEG"), ".jpg", "CMYK"),
        (by_pillow(cmyk, "TIFF"), ".tif", "CMYK"),
        (by_pillow(cmyk, "TIFF", compression="tiff_lzw"), ".tif", "CMYK"),
        (tiff(EIGHT[:, :, :3], photometric="cielab"), ".tif", "CIELab"),
        (tiff(EIGHT[:, :, 0], photometric="cfa"), ".tif", "a raw sensor pattern"),
    ]:
        with pytest.raises(ValueError, match=rf"^scan: does not open as .*its colours are {named}"):
            decode_image(data, suffix, "scan")
    ycbcr = Image.fromarray(EIGHT[:, :, :3] // 4 + 90).convert("YCbCr")
    plain = np.asarray(ycbcr.convert("RGB")).astype(int)
    for options in ({}, {"compression": "tiff_lzw"}):
        found = decode_image(by_pillow(ycbcr, "TIFF", **options), ".tif", "x")
        assert np.abs(found - plain).max() <= 2, "not the luma and chroma taken for red, green and blue"


def test_pages_are_refused_by_name_and_never_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = NOISE[:, :, :3].transpose(2, 0, 1)
    one = Image.fromarray(EIGHT[:, :, 0])
    with_series = io.BytesIO()
    with tifffile.TiffWriter(with_series) as writer:
        for page in (EIGHT[:, :, :3], EIGHT[:, :, 0], NOISE[:, :, 0]):
            writer.write(page)
    for data, suffix, count in [
        (tiff(pages, photometric="minisblack"), ".tif", 3),
        (tiff(pages, photometric="minisblack", metadata=None), ".tif", 3),
        (by_pillow(one, "TIFF", save_all=True, append_images=[one, one]), ".tiff", 3),
        (by_pillow(one, "TIFF", save_all=True, append_images=[one], compression="tiff_lzw"), ".tif", 2),
        (with_series.getvalue(), ".tif", 3),
        (tiff(pages, imagej=True), ".tif", 3),
    ]:
        with pytest.raises(ValueError, match=rf"^a\.tif: .*it has {count} pages, .*save each as a file of its own"):
            decode_image(data, suffix, "a.tif")
    planar = tiff(EIGHT[:, :, :3].transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(decode_image(planar, ".tif", "x"), EIGHT[:, :, :3])
    with pytest.warns(DeprecationWarning, match="are stored as RGB"):
        stack = decode(tiff(pages), ".tif", "x")
    assert stack.planes, "tifffile makes a picture of a stack of three unless it is told"
    assert "if they are images of their own, save each as a file" in stack.notes[0]
    with monkeypatch.context() as patch:
        patch.setattr(tiff_images, "_TIFFFILE_COMPRESSIONS", ())  # as of those that Pillow unpacks
        by_other = decode(planar, ".tif", "x")
    assert by_other.planes
    np.testing.assert_array_equal(by_other.pixels, EIGHT[:, :, :3])
    gray_and_alpha = EIGHT[:, :, :2].transpose(2, 0, 1)
    for plain in (
        tiff(EIGHT[:, :, :3], photometric="rgb"),
        tiff(gray_and_alpha, photometric="minisblack", planarconfig="separate", extrasamples=["unassalpha"]),
    ):
        assert not decode(plain, ".tif", "x").planes
    frames = by_pillow(one, "PNG", save_all=True, append_images=[Image.fromarray(EIGHT[:, :, 1])])
    with pytest.raises(ValueError, match="it is an animation"):
        decode_image(frames, ".png", "x")


def test_alpha_is_left_out_and_told() -> None:
    rgba = EIGHT.copy()
    rgba[:, :, 3] = 255
    rgba[:5, :, 3] = 7
    palette = Image.fromarray(EIGHT[:, :, 0]).convert("P")
    for data, suffix, shape in [
        (by_pillow(Image.fromarray(rgba), "PNG"), ".png", (20, 30, 3)),
        (by_pillow(Image.fromarray(rgba[:, :, [0, 3]], "LA"), "PNG"), ".png", (20, 30)),
        (tiff(rgba, photometric="rgb", extrasamples=["unassalpha"]), ".tif", (20, 30, 3)),
        (tiff(rgba[:, :, [0, 3]], photometric="minisblack", extrasamples=["unassalpha"]), ".tif", (20, 30)),
    ]:
        found = decode(data, suffix, "x")
        assert found.pixels.shape == shape
        np.testing.assert_array_equal(found.pixels.reshape(20, 30, -1)[..., 0], rgba[..., 0])
        assert found.notes == ("25.0% of its pixels are transparent: alpha is left out, the colours beneath are read",)
    rgba[:, :, 3] = 255
    assert not decode(by_pillow(Image.fromarray(rgba), "PNG"), ".png", "x").notes
    assert decode(by_pillow(palette, "PNG", transparency=3), ".png", "x").notes


def test_the_bytes_tell_the_type_and_not_the_name() -> None:
    jpeg = by_pillow(Image.fromarray(EIGHT[:, :, 0]), "JPEG", quality=95)
    for data, suffix, file_type in [
        (jpeg, ".png", "JPEG"),
        (jpeg, ".npy", "JPEG"),
        (by_pillow(Image.fromarray(EIGHT), "PNG"), ".jpg", "PNG"),
        (tiff(EIGHT[:, :, 0]), ".png", "TIFF"),
        (npy_bytes(EIGHT[:, :, 0]), ".tiff", "NPY"),
    ]:
        assert decode(data, suffix, "x").file_type == file_type
    square = np.zeros((64, 64), dtype=np.uint8)
    square[21:43, 21:43] = 255
    found = decode_mask_pixels(by_pillow(Image.fromarray(square), "JPEG"), ".png", "m.png")
    assert abs(int(found.sum()) - 22**2) < 22, "ripples of a JPEG called .png are not marked"
    for name in CONVERTED_TYPES:
        data = by_pillow(Image.fromarray(EIGHT[:, :, 0]), name.upper())
        with pytest.raises(
            ValueError, match=f"those of {name}, which is read where a file's name ends in .{name.lower()}"
        ):
            decode_image(data, ".png", "a.png")
    with pytest.raises(ValueError, match=r"its bytes are not of PNG, JPEG, TIFF, NPY, BMP, WebP or GIF\)"):
        decode_image(b"only words", ".png", "a.png")
    for data, named in [
        (b"\0\0\0\x18ftypheic" + bytes(20), "HEIC"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
    ]:
        with pytest.raises(ValueError, match=rf"^a\.png: does not open as PNG \(its bytes are those of {named}, not"):
            decode_image(data, ".png", "a.png")


@pytest.mark.parametrize("dtype", [">u2", ">f4", ">f8", "<i4", ">i2", "<f2"])
def test_npy_of_any_byte_order(dtype: str) -> None:
    array = NOISE[:, :, 0].astype(dtype)
    found = decode_image(npy_bytes(array), ".npy", "x")
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, array)
