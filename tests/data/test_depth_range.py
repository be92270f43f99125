"""What other programs write for "no data" is not depth, and neither is what no scale can mean."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from disk_sets import rgb, save

from unimmad.data.decode import decode_mask_pixels
from unimmad.data.depth_image import read_depth
from unimmad.data.depth_range import MAX_DEPTH_METRES
from unimmad.data.index import MAX_SCALE, MIN_SCALE, Modality
from unimmad.data.layouts import find_set
from unimmad.data.layouts.benchmarks import eyecandies
from unimmad.data.layouts.benchmarks.positions import read_positions
from unimmad.data.layouts.encode import npy_bytes
from unimmad.data.prepare import check_fits, prepare
from unimmad.data.writing.shards import write_shards

METRES = Modality(name="z", slot=0, kind="depth")
HALF = Modality(name="z", slot=0, kind="depth", scale=0.5, invalid=0.0)


def scan(dtype: type = np.float32, factor: float = 1) -> np.ndarray:
    """12 x 16, from 0.5 to 1.5 times ``factor``."""
    return ((0.5 + np.random.default_rng(0).random((12, 16))) * factor).astype(dtype)


def assert_not_measured(array: np.ndarray, modality: Modality, *places: tuple[int, int]) -> None:
    """What is made of ``array`` is what is made of it with NaN at ``places``."""
    expected = array.astype(np.float64)
    for place in places:
        expected[place] = np.nan
    largest = np.iinfo(array.dtype).max if array.dtype.kind == "i" else 1
    given = modality.model_copy(update={"scale": modality.scale / largest})
    np.testing.assert_allclose(
        read_depth(array, modality).centred(), read_depth(expected, given).centred(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "value", [3.4028235e38, -3.4e38, 1e38, 1e10, -1e10, np.inf, np.nan, -9999, 65535, -32768, 65504, -99999, 999999]
)
def test_no_data_is_background(value: float) -> None:
    array = scan()
    array[3, 4], array[7, 7] = value, value
    assert_not_measured(array, METRES, (3, 4), (7, 7))
    said = read_depth(array, METRES, "a.npy").no_data_note
    assert said == (f"pixels of {np.float32(value):g} count as not measured" if np.isfinite(value) else "")
    check_fits(array, METRES, "a.npy")


def test_a_value_of_either_sign_and_a_float64_beyond_all() -> None:
    array = scan(np.float64)
    array[0, 0], array[0, 1], array[1, 0], array[1, 1] = 1.7e308, -1.7e308, -9999, 9999
    assert_not_measured(array, METRES, (0, 0), (0, 1), (1, 0), (1, 1))


def test_signed_integers_and_the_scale() -> None:
    array = scan(np.int16, 900)
    array[2, 2] = -32768
    assert_not_measured(array, HALF, (2, 2))
    millimetres = Modality(name="z", slot=0, kind="depth", scale=0.001)
    array = scan(factor=900)
    array[2, 2], array[3, 3] = 65535, 1e11
    assert_not_measured(array, millimetres, (2, 2), (3, 3))


@pytest.mark.parametrize(
    ("array", "modality"),
    [
        (np.full((4, 4), 65535, dtype=np.uint16), HALF),
        (np.array([[9999, 2000], [1000, 3000]], dtype=np.float32), METRES),
        (np.array([[9999.5, 20], [10, 30]], dtype=np.float32), METRES),
        (np.array([[65535, 200], [100, 300]], dtype=np.uint16), HALF),
        (np.array([[1.2e6, 1.3e6], [1.1e6, 1.9e6]], dtype=np.float64), METRES),
    ],
    ids=["largest integer", "among others", "no such value", "unsigned", "micrometres taken for metres"],
)
def test_what_may_be_a_depth_is_one(array: np.ndarray, modality: Modality) -> None:
    assert read_depth(array, modality, "a.npy").no_data_note == ""
    largest = np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1
    metres = array.astype(np.float64) / largest * modality.scale
    np.testing.assert_allclose(read_depth(array, modality).centred(), (metres - metres.mean()) * 100, rtol=1e-5)


def test_a_scan_without_any_data_is_zero() -> None:
    assert not read_depth(np.full((4, 4), 3.4e38, dtype=np.float32), METRES).centred().any()


@pytest.mark.parametrize("factor", [1e9, 1e30])
def test_many_numbers_that_are_no_depth_are_refused(factor: float) -> None:
    array = scan(factor=factor)
    for call in (lambda: prepare(array, METRES, 8, "cap/3.npy"), lambda: check_fits(array, METRES, "cap/3.npy")):
        with pytest.raises(ValueError, match=r"^cap/3\.npy: 192 pixels of z lie beyond 1e\+07 m, .*z=depth:UNIT$"):
            call()


def test_the_farthest_depth_is_a_finite_input() -> None:
    array = np.where(np.random.default_rng(0).random((16, 16)) > 0.5, MAX_DEPTH_METRES, -MAX_DEPTH_METRES)
    for scale, dtype in [(1.0, np.float64), (MAX_DEPTH_METRES, np.float32)]:
        modality = Modality(name="z", slot=0, kind="depth", scale=scale)
        found = prepare((array / scale).astype(dtype), modality, 8)
        assert found.isfinite().all()
        assert found.abs().max() > 1e8


@pytest.mark.parametrize("scale", [0, MIN_SCALE / 2, MAX_SCALE * 2, np.inf, np.nan])
def test_a_scale_that_nothing_has_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        Modality(name="z", slot=0, kind="depth", scale=scale)


def test_writing_shards_says_it_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("train/good", "test/good"):
        for number in range(2):
            folder = tmp_path / "food" / "bagel" / part
            save(folder / "rgb" / f"{number}.png", rgb(number))
            array = scan()
            array[1, 1] = -9999
            array[2:6, number * 4 :] += 1 if part == "test/good" else 2
            save(folder / "depth" / f"{number}.npy", array)
    with caplog.at_level(logging.WARNING):
        write_shards([find_set(tmp_path / "food").source], tmp_path / "shards", progress=False)
    (said,) = [message for message in caplog.messages if "not measured" in message]
    assert said.startswith(f"note: {tmp_path}/food/bagel/train/good/depth/")
    assert "depth: pixels of -9999 count as not measured" in said


@pytest.mark.parametrize("value", [3.4e38, -1e10, np.inf, np.nan])
def test_positions_beyond_all_were_not_measured(tmp_path: Path, value: float) -> None:
    positions = np.random.default_rng(0).random((12, 16, 3)).astype(np.float32) + 1
    positions[3, 4, 2], positions[5, 6, 0] = value, value
    _, measured_HW = read_positions(save(tmp_path / "a.npy", positions))
    assert np.argwhere(~measured_HW).tolist() == [[3, 4], [5, 6]]


@pytest.mark.parametrize("bound", [".nan", ".inf", "1e300", "3.4e+38"])
def test_bounds_of_a_depth_that_are_none_are_refused(tmp_path: Path, bound: str) -> None:
    """All of the picture became background."""
    (tmp_path / "info.yaml").write_text(f"normalization: {{min: 0.5, max: {bound}}}")
    with pytest.raises(ValueError, match=r"info\.yaml: wanted normalization: with the numbers min and max"):
        eyecandies._bounds(tmp_path / "info.yaml")


def test_a_mask_with_nan_is_refused() -> None:
    """NaN is not above 0, and so was normal."""
    marked = np.zeros((4, 4), dtype=np.float32)
    marked[1, 1] = np.nan
    with pytest.raises(ValueError, match=r"^m\.npy: the mask has NaN"):
        decode_mask_pixels(npy_bytes(marked), ".npy", "m.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38, -9999])
@pytest.mark.parametrize("kind", ["rgb", "gray"])
def test_pictures_of_real_numbers_that_are_none_are_refused(value: float, kind: str) -> None:
    array = np.full((4, 4, 3) if kind == "rgb" else (4, 4), 0.5, dtype=np.float32)
    array[1, 1] = value
    with pytest.raises(ValueError, match=rf"^a\.npy: {kind} values go from .* must lie in 0-1"):
        prepare(array, Modality(name=kind, slot=0, kind=kind), 8, "a.npy")
