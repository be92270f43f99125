"""Each of these is refused by its headers: the decoders, which would take minutes, are not called."""

import io
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import tifffile
from hostile_images import (
    jpeg,
    jpeg_in_tiff,
    jpeg_of_scans,
    jpeg_with,
    ome_tiff,
    png,
    png_chunk,
    tiff,
    tiff_of_directories,
    tiff_of_strips,
    tiff_of_tile,
    tiff_with_shared_tags,
)
from PIL import Image

from unimmad.data import image_structure as structure
from unimmad.data.decode import decode_image
from unimmad.data.image_structure import (
    MAX_JPEG_JUNK,
    MAX_JPEG_SCANS,
    MAX_PNG_CHUNKS,
    MAX_TIFF_DIRECTORIES,
    MAX_TIFF_PARTS,
)

TEXT = png_chunk(b"tEXt", b"a\0b")
SEGMENT = b"\xff\xe5\x00\x02"

BEFORE_OPENING: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "PNG chunks before the pixels": (lambda: png(before=TEXT * MAX_PNG_CHUNKS), ".png", "65536 chunks"),
    "PNG chunks of no pixels": (lambda: png(within=png_chunk(b"IDAT") * MAX_PNG_CHUNKS), ".png", "65536 chunks"),
    "PNG chunks after the pixels": (lambda: png(after=TEXT * MAX_PNG_CHUNKS), ".png", "65536 chunks"),
    "JPEG scans": (lambda: jpeg_of_scans(400), ".jpg", "32 scans"),
    "JPEG scans under another name": (lambda: jpeg_of_scans(400), ".png", "32 scans"),
    "JPEG segments": (lambda: jpeg_with(SEGMENT * MAX_JPEG_JUNK), ".jpg", "65536 segments"),
    "JPEG fill bytes": (lambda: jpeg_with(b"\xff" * (2 * MAX_JPEG_JUNK)), ".jpg", "65536 segments"),
    "JPEG escaped bytes": (lambda: jpeg_with(b"\xff\0" * MAX_JPEG_JUNK), ".jpg", "65536 segments"),
    "TIFF directories": (lambda: tiff_of_directories(MAX_TIFF_DIRECTORIES + 1), ".tiff", "8192 directories"),
    "TIFF directories in a ring": (lambda: tiff([], next_directory=8), ".tiff", "8192 directories"),
    "TIFF tags": (lambda: tiff([(700, 1, 1, 0)] * 5000), ".tiff", "tags, more than the limit of 4096"),
    "TIFF tags that share values": (lambda: tiff_with_shared_tags(4000, 100_000), ".tiff", "its tags claim"),
}


@pytest.mark.parametrize("case", BEFORE_OPENING)
def test_too_many_parts_are_refused_before_the_file_is_opened(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, suffix, message = BEFORE_OPENING[case]

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a decoder was called")

    monkeypatch.setattr(Image, "open", opened)
    monkeypatch.setattr(tifffile, "TiffFile", opened)
    with pytest.raises(ValueError, match=f"case: does not open as .*{message}"):
        decode_image(make(), suffix, "case")


BEFORE_DECODING: dict[str, tuple[Callable[[], bytes], str]] = {
    "strips": (lambda: tiff_of_strips(MAX_TIFF_PARTS + 1), "262145 strips or tiles"),
    "strips that unpack to more": (lambda: tiff_of_strips(2000, bytes(2**20)), "strips or tiles unpack to more"),
    "a tile": (lambda: tiff_of_tile(60_000), "60000 x 60000 pixels are more than the limit"),
    "JPEG scans": (lambda: jpeg_in_tiff(90), "32 scans"),
}


@pytest.mark.parametrize("case", BEFORE_DECODING)
def test_parts_of_a_tiff_are_refused_before_they_are_decoded(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, message = BEFORE_DECODING[case]

    def decoded(*_: object, **__: object) -> None:
        raise AssertionError("a decoder was called")

    monkeypatch.setattr(Image, "open", decoded)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", decoded)
    with pytest.raises(ValueError, match=f"case: does not open as TIFF .*{message}"):
        decode_image(make(), ".tiff", "case")


def test_strips_that_unpack_to_much_are_unpacked_no_further_than_the_limit() -> None:
    """16 GiB in 20 kB: what is unpacked stays within 2 MiB."""
    data = tiff_of_strips(2000, bytes(2**23))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="unpack to more than the limit of 1052576 bytes"):
            decode_image(data, ".tiff", "case")
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


def test_a_description_announces_frames_that_are_not_there() -> None:
    """40 million frames, of which tifffile's series would keep a list."""
    data = ome_tiff(40_000_000)
    tracemalloc.start()
    try:
        np.testing.assert_array_equal(decode_image(data, ".tiff", "case"), np.full((8, 8), 7))
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("described", ['{"shape": [8, 8, 1000000000]}', '{"shape": [4, 4]}', '{"shape": []}'])
def test_a_described_shape_that_is_not_the_pages_is_no_shape(described: str) -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.full((8, 8), 7, dtype=np.uint8), description=described, metadata=None)
    np.testing.assert_array_equal(decode_image(stream.getvalue(), ".tiff", "case"), np.full((8, 8), 7))


def test_a_description_nested_deep_is_refused() -> None:
    stream = io.BytesIO()
    described = '{"shape": ' + "[" * 100_000 + "]" * 100_000 + "}"
    tifffile.imwrite(stream, np.zeros((8, 8), dtype=np.uint8), description=described, metadata=None)
    with pytest.raises(ValueError, match="nested deeper than 64"):
        decode_image(stream.getvalue(), ".tiff", "case")


def test_one_page_that_stands_for_several_planes_is_refused() -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((3, 20, 30), dtype=np.uint8), photometric="minisblack", truncate=True)
    with pytest.raises(ValueError, match="one page for several planes"):
        decode_image(stream.getvalue(), ".tiff", "case")


def test_the_largest_number_of_parts_is_read() -> None:
    assert decode_image(png(before=TEXT * (MAX_PNG_CHUNKS - 4)), ".png", "x").shape == (4, 4)
    assert decode_image(jpeg_of_scans(MAX_JPEG_SCANS), ".jpg", "x").shape == (16, 16, 3)
    assert decode_image(jpeg_with(SEGMENT * 300), ".jpg", "x").shape == (16, 16, 3)
    assert decode_image(tiff_of_strips(500), ".tiff", "x").shape == (500, 1)
    assert decode_image(jpeg_in_tiff(MAX_JPEG_SCANS), ".tiff", "x").shape == (16, 16, 3)


def test_a_scan_in_a_thumbnail_is_none_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "MAX_JPEG_SCANS", 1)
    thumbnail = jpeg(side=8)
    inside = b"\xff\xe5" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    assert decode_image(jpeg_with(inside), ".jpg", "x").shape == (16, 16, 3)
    assert decode_image(jpeg() + thumbnail, ".jpg", "x").shape == (16, 16, 3)


def test_restart_markers_are_none_of_a_jpegs_segments() -> None:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "JPEG", restart_marker_blocks=1)
    assert stream.getvalue().count(b"\xff\xd3") > 0
    assert decode_image(stream.getvalue(), ".jpg", "x").shape == (64, 64, 3)


@pytest.mark.parametrize(("imagej", "big"), [(False, False), (True, False), (False, True)])
def test_stacks_are_planes_where_these_are_asked_for_and_no_picture_else(imagej: bool, big: bool) -> None:
    planes = np.random.default_rng(0).random((3, 20, 30)).astype(np.float32)
    stream = io.BytesIO()
    tifffile.imwrite(stream, planes, photometric="minisblack", imagej=imagej, bigtiff=big)
    found = decode_image(stream.getvalue(), ".tiff", "x", planes=True)
    np.testing.assert_array_equal(found, np.moveaxis(planes, 0, 2))
    with pytest.raises(ValueError, match="it has 3 pages, which may be modalities, frames or slices"):
        decode_image(stream.getvalue(), ".tiff", "x")


def test_a_stack_of_rows_is_put_together_again() -> None:
    """What tifffile makes of real numbers whose last axis is the channels: a page of each row."""
    array = np.random.default_rng(0).random((20, 30, 3)).astype(np.float32)
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, photometric="minisblack")
    np.testing.assert_array_equal(decode_image(stream.getvalue(), ".tiff", "x"), array)


def test_a_thumbnail_behind_the_picture_is_left_out() -> None:
    array = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(array, photometric="rgb")
        writer.write(array[::2, ::2], photometric="rgb")
    np.testing.assert_array_equal(decode_image(stream.getvalue(), ".tiff", "x"), array)
