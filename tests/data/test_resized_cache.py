"""Resized images kept on disk: the same values, within the bound, and never a part of one."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from disk_sets import make_multimodal, make_mvtec

from unimmad.data.index import Member, Modality
from unimmad.data.layouts import find_set
from unimmad.data.reading import resized_cache, shard_set
from unimmad.data.reading.resized_cache import ResizedCache, ResizedImage, expected_bytes
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.writing.shards import write_shards

SIDE = 8
RGB = Modality(name="rgb", slot=0, kind="rgb")
DEPTH = Modality(name="depth", slot=1, kind="depth", scale=0.5, invalid=0.0)
SHARD, OTHER_SHARD = "a" * 64, "b" * 64
ONE_IMAGE = 16 + 3 * SIDE**2


def member(number: int = 0) -> Member:
    return Member(name=f"{number}.png", offset=512 * (number + 1), length=100)


def colours(seed: int = 0) -> ResizedImage:
    pixels = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    return ResizedImage(pixels, (30, 40))


def opened(
    folder: Path, limit_bytes: int = 10**6, expected: Mapping[str, int] | None = None, image_size: int = SIDE
) -> ResizedCache:
    """As a run that starts opens it."""
    cache = ResizedCache(folder, image_size, limit_bytes)
    cache.make_room({SHARD: ONE_IMAGE} if expected is None else expected)
    return cache


def aged(cache: ResizedCache, shard: str, time: int) -> None:
    [folder] = cache.folder.glob(f"*{shard}")
    os.utime(folder, (time, time))


def kept_shards(cache: ResizedCache) -> set[str]:
    """Last letters of their names."""
    return {path.name[-1] for path in cache.folder.iterdir() if path.is_dir()}


def kept_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.pixels"))


@pytest.mark.parametrize(
    "pixels",
    [
        colours().pixels,
        colours().pixels[:, :, 0].copy(),
        np.linspace(-5, 5, SIDE**2, dtype=np.float32).reshape(SIDE, SIDE),
        np.linspace(0, 1, 3 * SIDE**2, dtype=np.float32).reshape(SIDE, SIDE, 3),
    ],
)
def test_what_is_added_comes_back(tmp_path, pixels):
    cache = opened(tmp_path)
    cache.add(SHARD, member(), RGB, ResizedImage(pixels, (30, 40)))
    found = opened(tmp_path).get(SHARD, member(), RGB)
    assert found is not None
    assert found.stored_size == (30, 40)
    assert found.pixels.dtype == pixels.dtype
    np.testing.assert_array_equal(found.pixels, pixels)


def test_another_place_shard_size_or_way_to_read_is_another_image(tmp_path):
    cache = opened(tmp_path)
    cache.add(SHARD, member(), DEPTH, colours())
    assert cache.get(SHARD, member(), DEPTH) is not None
    assert cache.get(SHARD, member(1), DEPTH) is None
    assert cache.get(OTHER_SHARD, member(), DEPTH) is None
    for other in (RGB, DEPTH.model_copy(update={"scale": 1.0}), DEPTH.model_copy(update={"invalid": None})):
        assert cache.get(SHARD, member(), other) is None
    assert opened(tmp_path, image_size=2 * SIDE).get(SHARD, member(), DEPTH) is None


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: b"XXXX" + data[4:]])
def test_a_damaged_file_is_no_image_and_is_replaced(tmp_path, damage):
    cache = opened(tmp_path)
    cache.add(SHARD, member(), RGB, colours())
    [path] = tmp_path.rglob("*.pixels")
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get(SHARD, member(), RGB) is None
    cache.add(SHARD, member(), RGB, colours())
    assert cache.get(SHARD, member(), RGB) is not None


def test_the_bound_holds_over_processes_and_runs_that_know_nothing_of_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(resized_cache, "BLOCK_BYTES", 2 * ONE_IMAGE)
    limit = 10 * ONE_IMAGE + 5
    runs = [opened(tmp_path, limit, {SHARD: 100 * ONE_IMAGE}) for _ in range(2)]
    processes = [pickle.loads(pickle.dumps(run)) for run in runs for _ in range(2)]
    for number in range(40):
        processes[number % 4].add(SHARD, member(number), RGB, colours())
    assert kept_bytes(tmp_path) == 10 * ONE_IMAGE


def test_a_loader_process_takes_room_of_its_own(tmp_path):
    cache = opened(tmp_path, 6 * ONE_IMAGE)
    cache.add(SHARD, member(0), RGB, colours())
    worker = pickle.loads(pickle.dumps(cache))
    for number in range(1, 20):
        worker.add(SHARD, member(number), RGB, colours())
        cache.add(SHARD, member(number + 20), RGB, colours())
    assert kept_bytes(tmp_path) == 6 * ONE_IMAGE


def test_room_that_a_process_took_and_never_used_is_there_for_the_next_run(tmp_path):
    limit = 6 * ONE_IMAGE
    opened(tmp_path, limit).add(SHARD, member(0), RGB, colours())
    next_run = opened(tmp_path, limit)
    for number in range(1, 20):
        next_run.add(SHARD, member(number), RGB, colours())
    assert kept_bytes(tmp_path) == limit


@pytest.mark.parametrize("rest", [0, 5])
def test_a_full_cache_makes_room_for_another_run_longest_unused_first(tmp_path, rest):
    limit = 3 * ONE_IMAGE + rest
    cache = opened(tmp_path, limit)
    for age, name in enumerate(("c", "e", "d")):
        cache.add(name * 64, member(), RGB, colours())
        aged(cache, name * 64, 1000 + age)
    cache = opened(tmp_path, limit, {"c" * 64: ONE_IMAGE, SHARD: ONE_IMAGE})
    assert kept_shards(cache) == {"c", "d"}
    cache.add(SHARD, member(), RGB, colours())
    assert kept_shards(cache) == {"a", "c", "d"}


def test_a_run_that_needs_no_more_room_removes_nothing(tmp_path):
    cache = opened(tmp_path, 2 * ONE_IMAGE)
    for name in (SHARD, OTHER_SHARD):
        cache.add(name, member(), RGB, colours())
    assert opened(tmp_path, 2 * ONE_IMAGE).make_room({SHARD: ONE_IMAGE}) == 2 * ONE_IMAGE
    assert kept_shards(cache) == {"a", "b"}


def test_a_lower_bound_holds_for_the_same_data(tmp_path):
    both = {SHARD: ONE_IMAGE, OTHER_SHARD: ONE_IMAGE}
    cache = opened(tmp_path, 2 * ONE_IMAGE, both)
    for age, name in enumerate((SHARD, OTHER_SHARD)):
        cache.add(name, member(), RGB, colours())
        aged(cache, name, 1000 + age)
    assert opened(tmp_path, ONE_IMAGE + 5, both).make_room(both) == ONE_IMAGE
    assert kept_shards(cache) == {"b"}


def test_another_version_of_a_library_makes_its_own_images(tmp_path, monkeypatch):
    cache = opened(tmp_path)
    cache.add(SHARD, member(), RGB, colours())
    monkeypatch.setattr(resized_cache, "_VERSIONS", "other")
    assert cache.get(SHARD, member(), RGB) is None


def test_a_run_whose_images_another_removes_goes_on(tmp_path, caplog, monkeypatch):
    cache = opened(tmp_path)
    cache.add(SHARD, member(0), RGB, colours())
    [folder] = cache.folder.glob(f"*{SHARD}")
    write_bytes = Path.write_bytes

    def interrupted(self: Path, data: bytes) -> int:
        shutil.rmtree(folder)
        return write_bytes(self, data)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", interrupted)
        cache.add(SHARD, member(1), RGB, colours())
    assert cache.get(SHARD, member(0), RGB) is None
    cache.add(SHARD, member(0), RGB, colours())
    assert cache.get(SHARD, member(0), RGB) is not None
    assert not caplog.records


def test_the_bytes_expected_are_those_kept(tmp_path):
    folders = [tmp_path / "shards" / name for name in ("food", "parts")]
    for root, folder in zip((make_multimodal(tmp_path / "food"), make_mvtec(tmp_path / "parts")), folders, strict=True):
        write_shards([find_set(root).source], folder, progress=False)
    shards = ShardSet.open(folders)
    expected = expected_bytes(shards.indexes, SIDE)
    shards.resized = opened(tmp_path / "cache", expected=expected)
    for refs in shards.classes("train").values():
        for ref in refs:
            shards.read(ref, SIDE)
    assert kept_bytes(tmp_path) == sum(expected.values())


def test_what_killed_processes_left_goes(tmp_path):
    opened(tmp_path).add(SHARD, member(), RGB, colours())
    folder = tmp_path / "resized" / f"{SIDE}-{resized_cache._VERSIONS}-{SHARD}"
    old, fresh = folder / ".1-rgb.7.pixels", folder / ".2-rgb.8.pixels"
    for path in (old, fresh):
        path.write_bytes(b"half")
    long_ago = time.time() - 7200
    os.utime(old, (long_ago, long_ago))
    opened(tmp_path)
    assert not old.exists()
    assert fresh.exists()


def test_a_disk_that_fails_ends_the_keeping_and_not_the_run(tmp_path, caplog, monkeypatch):
    cache = opened(tmp_path)

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(Path, "write_bytes", full)
        cache.add(SHARD, member(), RGB, colours())
        cache.add(SHARD, member(1), RGB, colours())
    assert caplog.text.count("no more resized images are kept") == 1
    assert "No space left on device" in caplog.text
    assert list(tmp_path.rglob("*.pixels")) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/resized can't be used .* data\.resized_cache_gb to 0"):
        opened(tmp_path / "file")


def test_samples_are_bit_for_bit_those_without_and_are_decoded_once(tmp_path, monkeypatch):
    folders = [tmp_path / "shards" / name for name in ("food", "parts")]
    for root, folder in zip((make_multimodal(tmp_path / "food"), make_mvtec(tmp_path / "parts")), folders, strict=True):
        write_shards([find_set(root).source], folder, progress=False)
    plain, cached = ShardSet.open(folders), ShardSet.open(folders)
    cached.resized = opened(tmp_path / "cache")
    decoded: list[str] = []
    decode_image = shard_set.decode_image

    def counted(data: bytes, suffix: str, where: str) -> np.ndarray:
        decoded.append(where)
        return decode_image(data, suffix, where)

    refs = [ref for of_class in plain.classes("train").values() for ref in of_class]
    wanted = [plain.read(ref, SIDE).images_MCHW for ref in refs]
    monkeypatch.setattr(shard_set, "decode_image", counted)
    for _ in range(2):
        for ref, images_MCHW in zip(refs, wanted, strict=True):
            assert torch.equal(cached.read(ref, SIDE).images_MCHW, images_MCHW)
    assert len(decoded) == len(set(decoded)) == sum(len(images_MCHW) for images_MCHW in wanted)
    other_size = cached.read(refs[0], 2 * SIDE).images_MCHW
    assert torch.equal(other_size, plain.read(refs[0], 2 * SIDE).images_MCHW)
