"""Pixel scores in files: the same numbers in little memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from unimmad.metrics import append_buffer as growing
from unimmad.metrics.append_buffer import GrowingArray, blocks
from unimmad.metrics.metrics import MetricAccumulator, evaluate


def invented(count, size=64, seed=0):
    """Half of the images have a defect; scores have many ties, zeros of both signs and infinities."""
    rng = np.random.default_rng(seed)
    maps = np.round(rng.normal(size=(count, size, size)) * 20).astype(np.float32)
    masks = np.zeros((count, size, size), np.uint8)
    masks[1::2, 5:20, 8:30] = masks[1::2, 40:44, 1:60] = 255
    maps[masks > 0] += 15
    maps[0, 0, :3] = [-np.inf, np.inf, -0.0]
    return maps, masks, maps.max(axis=(1, 2)), np.arange(count) % 2


def filled(images, folder):
    accumulator = MetricAccumulator(folder)
    for image in zip(*images, strict=True):
        accumulator.add(*image)
    return accumulator


@pytest.mark.parametrize("in_file", [False, True])
def test_it_holds_what_was_appended(tmp_path, monkeypatch, in_file):
    monkeypatch.setattr(growing, "BLOCK", 7)
    array = GrowingArray(np.int32, tmp_path if in_file else None)
    assert len(array.values) == len(array.sorted_copy()) == 0
    pieces = [np.array([5, -3]), np.array([], dtype=int), np.arange(20)[::2], np.array([0])]
    for piece in pieces:
        array.append(piece)
    expected = np.concatenate(pieces)
    np.testing.assert_array_equal(array.values, expected)
    np.testing.assert_array_equal(array.sorted_copy(), np.sort(expected))
    np.testing.assert_array_equal(array.values, expected)
    assert array.values.dtype == np.int32
    array.values.sort()
    array.append(np.array([99]))
    assert array.values[-1] == 99
    np.testing.assert_array_equal(array.values[:-1], np.sort(expected))


def test_blocks_cover_a_length_once():
    assert [(b.start, b.stop) for b in blocks(growing.BLOCK + 5)] == [
        (0, growing.BLOCK),
        (growing.BLOCK, growing.BLOCK + 5),
    ]
    assert list(blocks(0)) == []


def test_spilled_metrics_are_the_same_to_the_last_bit(tmp_path):
    images = invented(12)
    spilled = filled(images, tmp_path / "new" / "folder")
    assert spilled.compute() == evaluate(*images)
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_spilled_and_held_accumulators_merge(tmp_path):
    images = invented(12)
    first, second = [part[:5] for part in images], [part[5:] for part in images]
    for one, other in ((tmp_path, None), (None, tmp_path)):
        merged = filled(first, one)
        merged.merge(filled(second, other))
        assert merged.compute() == pytest.approx(evaluate(*images), abs=1e-12)


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch):
    monkeypatch.setattr(growing, "BLOCK", 1 << 12)
    peaks = []
    for count in (20, 160):
        images = invented(count)
        tracemalloc.start()
        filled(images, tmp_path).compute()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
    assert peaks[1] < 160 * 64 * 64 * 4 / 2


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot keep pixel scores in .*file/x: .*choose another folder"):
        MetricAccumulator(tmp_path / "file" / "x")


def test_a_full_disk_is_said(tmp_path):
    array = GrowingArray(np.float32, tmp_path)
    array._storage._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(ValueError, match=r"cannot keep pixel scores in .*: No space left"):
        array.append(np.ones(3))
