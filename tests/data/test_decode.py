import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from unimmad.data import decode_limits as limits
from unimmad.data.decode import check_same_size, decode_image, decode_mask_pixels
from unimmad.data.mask_resize import resized_mask
from unimmad.data.views import whole


def encoded(array: np.ndarray, suffix: str) -> bytes:
    stream = io.BytesIO()
    if suffix == ".npy":
        np.save(stream, array)
    elif suffix == ".tiff":
        tifffile.imwrite(stream, array, photometric="rgb" if array.shape[2:] == (3,) else "minisblack")
    else:
        Image.fromarray(array).save(stream, format=suffix[1:].upper())
    return stream.getvalue()


def pillow(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".npy"])
@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 1), (np.uint8, 3), (np.uint16, 1)])
def test_lossless_types_come_back_exactly(suffix: str, dtype: type, channels: int) -> None:
    shape = (5, 7) if channels == 1 else (5, 7, channels)
    array = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)
    decoded = decode_image(encoded(array, suffix), suffix, "x")
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, array)


@pytest.mark.parametrize("suffix", [".tiff", ".npy"])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_real_numbers_and_channels(suffix: str, channels: int) -> None:
    array = np.random.default_rng(0).standard_normal((20, 30, channels)).astype(np.float32)
    expected = array[:, :, 0] if channels == 1 else array
    np.testing.assert_array_equal(decode_image(encoded(array, suffix), suffix, "x"), expected)


def test_compressed_tiff() -> None:
    array = np.arange(35, dtype=np.uint8).reshape(5, 7)
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="TIFF", compression="tiff_lzw")
    np.testing.assert_array_equal(decode_image(stream.getvalue(), ".tiff", "x"), array)


def test_palette_alpha_and_one_bit() -> None:
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([0, 0, 0, 200, 10, 20])
    assert decode_image(pillow(palette), ".png", "x")[0, 0].tolist() == [200, 10, 20]
    assert decode_image(pillow(Image.new("RGBA", (3, 2), (1, 2, 3, 0))), ".png", "x")[0, 0].tolist() == [
        1,
        2,
        3,
    ]
    assert decode_image(pillow(Image.new("LA", (3, 2), (9, 0))), ".png", "x").tolist() == [[9] * 3] * 2
    assert decode_image(pillow(Image.new("1", (3, 2), 1)), ".png", "x").tolist() == [[255] * 3] * 2


def test_jpeg_under_the_name_of_png() -> None:
    data = encoded(np.full((8, 8, 3), 128, dtype=np.uint8), ".jpeg")
    assert decode_image(data, ".png", "x").shape == (8, 8, 3)


def test_pickles_are_refused() -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"case\.npy: does not open"):
        decode_image(stream.getvalue(), ".npy", "case.npy")


@pytest.mark.parametrize("suffix", [".png", ".jpeg", ".tiff", ".npy"])
def test_broken_files_are_named(suffix: str) -> None:
    whole = encoded(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8), suffix)
    for data in (b"", b"nonsense" * 10, whole[: len(whole) // 2]):
        with pytest.raises(ValueError, match="part/007: does not open"):
            decode_image(data, suffix, "part/007")


def test_shapes_and_types_that_are_no_image() -> None:
    with pytest.raises(ValueError, match=r"shape is \(4,\)"):
        decode_image(encoded(np.zeros(4), ".npy"), ".npy", "x")
    with pytest.raises(ValueError, match="complex"):
        decode_image(encoded(np.zeros((4, 4), dtype=complex), ".npy"), ".npy", "x")
    with pytest.raises(ValueError, match=r"type \.gif is not read"):
        decode_image(b"", ".gif", "x")


def decode_mask(data, suffix, where, size, shape, rule="nearest"):
    marked = decode_mask_pixels(data, suffix, where)
    check_same_size(where, marked.shape, "its image", shape)
    return resized_mask(marked, whole(shape, size), rule)


def test_mask_counts_above_zero_and_resizes_nearest() -> None:
    array = np.zeros((4, 8), dtype=np.uint8)
    array[:2, :4] = 1
    resized = decode_mask(encoded(array, ".png"), ".png", "m", 4, (4, 8, 3))
    expected = np.zeros((4, 4), dtype=bool)
    expected[:2, :2] = True
    np.testing.assert_array_equal(resized, expected)


def test_bilinear_mask_is_larger() -> None:
    array = np.zeros((64, 64), dtype=np.uint8)
    array[20:41, 20:41] = 255
    data = encoded(array, ".png")
    nearest, bilinear = (decode_mask(data, ".png", "m", 16, (64, 64), how) for how in ("nearest", "bilinear"))
    assert bilinear[nearest].all()
    assert bilinear.sum() > nearest.sum()


def test_jpeg_mask_ignores_ripples() -> None:
    array = np.zeros((64, 64), dtype=np.uint8)
    array[21:43, 21:43] = 255
    resized = decode_mask(encoded(array, ".jpeg"), ".jpeg", "m", 64, (64, 64))
    assert abs(int(resized.sum()) - 22 * 22) < 22


def test_opaque_alpha_is_no_mask() -> None:
    data = pillow(Image.new("RGBA", (4, 4), (0, 0, 0, 255)))
    assert not decode_mask(data, ".png", "m", 4, (4, 4)).any()


def test_mask_of_another_size_names_both() -> None:
    with pytest.raises(ValueError, match=r"m\.png is 8 x 4 pixels.*its image is 9 x 4"):
        decode_mask(encoded(np.zeros((4, 8), dtype=np.uint8), ".png"), ".png", "m.png", 4, (4, 9))


def png_of(width: int, height: int) -> bytes:
    """A valid header that announces a size, with the pixels of a smaller image behind it."""
    data = bytearray(pillow(Image.new("L", (4, 4))))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def npy_of(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue() + bytes(100)


def tiff_of(width: int, height: int) -> bytes:
    """Announces its size; its one deflated strip is four pixels."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((2, 2), dtype=np.uint8), compression="zlib", rowsperstrip=2)
    data = bytearray(stream.getvalue())
    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        tags = tiff.pages[0].tags
        for name, value in (("ImageWidth", width), ("ImageLength", height), ("RowsPerStrip", height)):
            tag = tags[name]
            if tag.dtype == 3 and value > 2**16 - 1:
                data[tag.offset + 2 : tag.offset + 4] = struct.pack(tiff.byteorder + "H", 4)
            form = "H" if tag.dtype == 3 and value < 2**16 else "I"
            data[tag.offset + 8 : tag.offset + 12] = struct.pack(tiff.byteorder + form, value).ljust(4, b"\0")
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "suffix"),
    [(png_of(9000, 9000), ".png"), (npy_of((9000, 9000)), ".npy"), (tiff_of(9000, 9000), ".tiff")],
)
def test_an_image_that_announces_too_many_pixels_is_refused_before_it_is_decoded(data: bytes, suffix: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"case: does not open as .*9000 x 9000 pixels are more than the limit"):
            decode_image(data, suffix, "case")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_an_npy_that_announces_more_than_follows_makes_no_room_for_it() -> None:
    with pytest.raises(ValueError, match="ends before its last value"):
        decode_image(npy_of((8000, 8000)), ".npy", "case")
    with pytest.raises(ValueError, match="bytes decoded are more"):
        decode_image(npy_of((1000, 1000, 10_000)), ".npy", "case")


def test_a_tiff_strip_that_unpacks_to_more_than_its_size_says() -> None:
    bomb = zlib.compress(bytes(2**24))
    stream = io.BytesIO()
    tifffile.imwrite(stream, iter([bomb]), shape=(2, 2), dtype=np.uint8, compression="zlib", rowsperstrip=2)
    with pytest.raises(ValueError, match="strips or tiles unpack to more than the limit of 1048584 bytes"):
        decode_image(stream.getvalue(), ".tiff", "case")


def test_deflated_tiff() -> None:
    array = np.random.default_rng(0).random((20, 30, 3)).astype(np.float32)
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, photometric="rgb", compression="zlib")
    np.testing.assert_array_equal(decode_image(stream.getvalue(), ".tiff", "x"), array)


def test_a_file_that_is_too_long_is_not_even_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_MEMBER_BYTES", 50)
    with pytest.raises(ValueError, match="case: 51 bytes are more than an image may have"):
        decode_image(bytes(51), ".png", "case")
