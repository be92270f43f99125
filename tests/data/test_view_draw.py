"""Training by tiles: which one stands at a position is a rule, the same for any ranks, workers and starts."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from unimmad.config import load_recipe
from unimmad.data.index import DatasetEntry, Modality
from unimmad.data.layouts.source_set import SourceFile, SourceSample, SourceSet
from unimmad.data.reading.order import TrainingOrder
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.reading.stream import training_batches
from unimmad.data.reading.view_draw import ViewDraw
from unimmad.data.views import Geometry, Tiles, whole
from unimmad.data.writing.shards import write_shards

SHAPE = (40, 100)
TILES = Geometry(tiles=Tiles(32, 8))
BOTH = Geometry(tiles=Tiles(32, 8, whole=True))


def test_the_draw_is_pinned() -> None:
    """A change here breaks the resume of every run by tiles that was started before it."""
    views = TILES.views(SHAPE, 16)
    drawn = [views.index(ViewDraw(TILES, 3, 1, position).of(SHAPE, 16)) for position in range(12)]
    assert drawn == [2, 0, 3, 5, 5, 7, 5, 1, 0, 2, 2, 4]
    assert [ViewDraw(Geometry("crop"), 3, 1, 0).of(SHAPE, 16)] == [whole(SHAPE, 16, "crop")]


def test_every_tile_is_equally_likely_and_the_whole_image_has_half_of_the_draws() -> None:
    views = BOTH.views(SHAPE, 16)
    counts = Counter(ViewDraw(BOTH, 0, epoch, place).of(SHAPE, 16) for epoch in range(4) for place in range(500))
    assert set(counts) == set(views)
    assert abs(counts[views[0]] - 1000) < 4 * 22.4
    expected = 1000 / (len(views) - 1)
    assert all(abs(counts[view] - expected) < 4.5 * expected**0.5 for view in views[1:])


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    """Four images whose red is the column and whose green is the row."""
    rows, columns = np.mgrid[: SHAPE[0], : SHAPE[1]].astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(np.stack([2 * columns, 4 * rows, np.zeros_like(rows)], axis=2)).save(content, "png")
    image = SourceFile("image", ".png", content.getvalue)
    samples = tuple(SourceSample(f"{n}", "part", "train", "good", {"rgb": image}, None) for n in range(4))
    entry = DatasetEntry(field="industry", modalities=(Modality(name="rgb", slot=0, kind="rgb"),))
    folder = tmp_path_factory.mktemp("tiles") / "set"
    write_shards([SourceSet("mine", "made by this test", entry, samples)], folder, progress=False)
    return ShardSet.open([folder])


def test_ranks_and_starts_see_the_same_tiles_of_which_pixels_are_the_images_own(shards) -> None:
    order = TrainingOrder(shards.classes("train"), lambda ref: ref.entry.shard, seed=5, batch=4)

    def read(rank: int = 0, world_size: int = 1, start: int = 0) -> list[torch.Tensor]:
        stream = training_batches(
            shards,
            order,
            image_size=32,
            rank=rank,
            world_size=world_size,
            workers=0,
            start_step=start,
            end_step=3,
            geometry=TILES,
        )
        return [batch.images_TCHW for _, batch in stream]

    alone = read()
    torch.testing.assert_close(torch.cat(read(start=1)), torch.cat(alone[1:]), rtol=0, atol=0)
    halves = zip(read(0, 2), read(1, 2), strict=True)
    torch.testing.assert_close(torch.stack([torch.cat(both) for both in halves]), torch.stack(alone), rtol=0, atol=0)
    for step, images_TCHW in enumerate(alone):
        for place, image_CHW in enumerate(images_TCHW):
            source = ViewDraw(TILES, 5, *order.position(step, place)).of(SHAPE, 32).source
            red = (image_CHW[0] * 0.229 + 0.485) * 255
            assert red[0, 0].item() == pytest.approx(2 * source.left, abs=0.1)
            assert red[0, -1].item() == pytest.approx(2 * (source.left + 31), abs=0.1)


def test_a_cache_of_whole_images_does_not_go_with_tiles() -> None:
    with pytest.raises(ValueError, match=r"data\.resized_cache_gb keeps whole images"):
        load_recipe("tiny", ["training.tiles.size=64", "data.resized_cache_gb=1"])
    with pytest.raises(ValueError, match="overlap 64 must be at most half of size 64"):
        load_recipe("tiny", ["evaluation.tiles={size: 64, overlap: 64}"])
    with pytest.raises(ValueError, match="size 5 makes too many tiles"):
        load_recipe("tiny", ["training.tiles.size=5"])
    assert load_recipe("tiny", ["training.tiles.size=64"]).training.tiles.overlap == 32
