"""Anomalies on training images: by the order rule, beside the images as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_shards import FakeShards, make_order

from unimmad.data.reading.anomaly_draw import AnomalyDraw
from unimmad.data.reading.stream import training_batches
from unimmad.data.sample import Batch

SIZE, STEPS = 16, 12


class PictureShards(FakeShards):
    """Whose images have something to paste."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for refs in self.classes("train").values():
            for ref in refs:
                picture_HW = np.random.default_rng(ref.number).standard_normal((SIZE, SIZE))
                np.save(self._path(ref), picture_HW.astype(np.float32))


def batches(shards: FakeShards, share: float, rank: int = 0, world_size: int = 1, workers: int = 0) -> Iterator[Batch]:
    for _, batch in training_batches(
        shards,
        make_order(shards),
        image_size=SIZE,
        rank=rank,
        world_size=world_size,
        workers=workers,
        start_step=0,
        end_step=STEPS,
        drawn_share=share,
    ):
        yield batch


@pytest.fixture
def shards(tmp_path: Path) -> FakeShards:
    return PictureShards(tmp_path)


def test_the_images_stay_as_they_are_and_a_share_of_the_samples_has_anomalies(shards: FakeShards) -> None:
    changed = 0
    for batch, plain in zip(batches(shards, 0.5), batches(shards, 0.0), strict=True):
        assert plain.drawn_TCHW is None
        assert batch.drawn_TCHW is not None
        assert torch.equal(batch.images_TCHW, plain.images_TCHW)
        changed += int((batch.drawn_TCHW != batch.images_TCHW).flatten(1).any(1).sum())
    assert 0.3 < changed / (4 * STEPS) < 0.7


def test_two_ranks_and_workers_draw_what_one_draws(shards: FakeShards) -> None:
    alone = [batch.drawn_TCHW for batch in batches(shards, 1.0)]
    halves = [batches(shards, 1.0, rank, 2, workers=rank) for rank in range(2)]
    for whole_TCHW, *parts in zip(alone, *halves, strict=True):
        assert whole_TCHW is not None
        assert torch.equal(whole_TCHW, torch.cat([part.drawn_TCHW for part in parts]))


def test_all_modalities_of_a_sample_or_one_of_them_have_an_anomaly() -> None:
    images_MCHW = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    counts = []
    for position in range(40):
        drawn_MCHW = AnomalyDraw(seed=0, share=1.0).drawn(images_MCHW, 0, position)
        counts.append(int((drawn_MCHW != images_MCHW).flatten(1).any(1).sum()))
    # Rarely one is drawn that changes nothing.
    assert 12 < counts.count(1) < 28
    assert counts.count(1) + counts.count(4) >= 35
