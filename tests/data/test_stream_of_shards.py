"""The stream from real shards, local and by URL."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
from data.fake_shards import keys
from PIL import Image

from unimmad.data.index import DatasetEntry, Modality
from unimmad.data.layouts.source_set import SourceFile, SourceSample, SourceSet
from unimmad.data.location import parse_data_folder
from unimmad.data.reading.order import TrainingOrder
from unimmad.data.reading.shard_cache import ShardCache
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.reading.stream import expect_workers, training_batches
from unimmad.data.sample import Batch
from unimmad.data.writing.shards import write_shards

# Three workers on fewer cores are what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


def make_real_shards(tmp_path: Path, shard_bytes: int) -> ShardSet:
    """Two classes of one grey modality, eight samples each."""
    samples = tuple(
        SourceSample(f"{name}_{i}", name, "train", "good", {"gray": _png(name, i)}, None)
        for name in ("x", "y")
        for i in range(8)
    )
    entry = DatasetEntry(field="industry", modalities=(Modality(name="gray", slot=0, kind="gray"),))
    folder = tmp_path / "set"
    source = SourceSet("made", "made by this test", entry, samples)
    write_shards([source], folder, shard_bytes=shard_bytes, progress=False)
    return ShardSet.open([folder])


@pytest.fixture
def real_shards(tmp_path: Path) -> ShardSet:
    """In several shards."""
    return make_real_shards(tmp_path, shard_bytes=10_000)


def _png(name: str, number: int) -> SourceFile:
    file = io.BytesIO()
    Image.new("L", (8, 8), 10 * number).save(file, "png")
    return SourceFile(f"{name}_{number}", ".png", file.getvalue)


def _real_stream(shards: ShardSet, workers: int) -> Iterator[tuple[int, Batch]]:
    order = TrainingOrder(shards.classes("train"), lambda ref: (ref.folder, ref.entry.shard), seed=0, batch=4)
    return training_batches(
        shards, order, image_size=8, rank=0, world_size=1, workers=workers, start_step=0, end_step=12
    )


def test_one_shard_and_seven_workers(tmp_path: Path) -> None:
    shards = make_real_shards(tmp_path, shard_bytes=2**20)
    assert len(shards.indexes[0].shards) == 1
    alone = [keys(batch) for _, batch in _real_stream(shards, 0)]
    assert [keys(batch) for _, batch in _real_stream(shards, 7)] == alone


def test_a_url_gives_the_same_as_its_folder_and_fits_a_small_cache(real_shards: ShardSet, tmp_path: Path) -> None:
    folder = cast(Path, real_shards.folders[0])
    largest = max(shard.bytes for shard in real_shards.indexes[0].shards)
    cache = ShardCache(tmp_path / "cache", 4 * largest)
    remote = ShardSet.open([parse_data_folder(f"pipe:cat {folder}/{{}}")], cache)
    pairs = zip(_real_stream(remote, 2), _real_stream(real_shards, 0), strict=True)
    for (step, batch), (expected_step, expected) in pairs:
        assert (step, keys(batch)) == (expected_step, keys(expected))
        assert torch.equal(batch.images_TCHW, expected.images_TCHW)
    assert 0 < sum(path.stat().st_size for path in cache.folder.glob("*.tar")) <= cache.limit_bytes


def test_real_shards_give_the_same_with_workers(real_shards: ShardSet) -> None:
    assert len(real_shards.indexes[0].shards) > 2
    alone = list(_real_stream(real_shards, 0))
    assert len({key for _, batch in alone for key in keys(batch)}) == 16
    for (step, batch), (expected_step, expected) in zip(_real_stream(real_shards, 2), alone, strict=True):
        assert step == expected_step
        assert keys(batch) == keys(expected)
        assert torch.equal(batch.images_TCHW, expected.images_TCHW)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", ["cut short", "removed"])
def test_a_shard_damaged_while_training_is_named(real_shards: ShardSet, workers: int, damage: str) -> None:
    shard = real_shards.folders[0] / real_shards.indexes[0].shards[0].name
    if damage == "removed":
        shard.unlink()
    else:
        os.truncate(shard, 700)
    with pytest.raises(ValueError, match=shard.name) as caught:
        list(_real_stream(real_shards, workers))
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_workers_that_were_expected_read_the_same(real_shards: ShardSet) -> None:
    expect_workers()
    alone = [keys(batch) for _, batch in _real_stream(real_shards, 0)]
    assert [keys(batch) for _, batch in _real_stream(real_shards, 1)] == alone
