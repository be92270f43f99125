"""What an evaluation reads: each sample once, class by class, shared among ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from data.fake_shards import SIZE, FakeShards, keys

from unimmad.data.reading.stream import evaluation_rounds

# Three workers on fewer cores are what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture
def shards(tmp_path: Path) -> Any:
    return FakeShards(tmp_path)


@pytest.mark.parametrize("workers", [0, 3])
def test_evaluation_reads_each_sample_once_and_mixes_no_classes(shards: Any, workers: int) -> None:
    stream = evaluation_rounds(shards, "train", image_size=SIZE, batch_size=3, workers=workers)
    batches = [(batch.samples[0].class_name, keys(batch)) for batch in stream]
    assert batches == [
        ("a/x", ["x_0", "x_1", "x_2"]),
        ("a/x", ["x_3", "x_4"]),
        ("a/y", ["y_0", "y_1", "y_2"]),
        ("b/z", ["z_0", "z_1", "z_2"]),
        ("b/z", ["z_3", "z_4", "z_5"]),
        ("b/z", ["z_6", "z_7"]),
    ]


@pytest.mark.parametrize("world_size", [2, 4, 7])
def test_ranks_share_the_batches_of_an_evaluation(shards: Any, world_size: int) -> None:
    """In rounds of one batch a rank; one that lost all its samples, or is not there, is None."""
    shards.spoil("y_0", "y_1", "y_2")
    options = {"image_size": SIZE, "batch_size": 3, "workers": 0, "on_error": "skip"}
    whole = [[] if batch is None else keys(batch) for batch in evaluation_rounds(shards, "train", **options)]
    assert whole[2] == [], "class a/y lost all its samples"
    parts = [
        list(evaluation_rounds(shards, "train", rank=rank, world_size=world_size, **options))
        for rank in range(world_size)
    ]
    found = [[] if batch is None else keys(batch) for of_round in zip(*parts, strict=True) for batch in of_round]
    assert found[: len(whole)] == whole
    assert found[len(whole) :] == [[]] * (-len(whole) % world_size)


def test_evaluation_of_chosen_classes(shards: Any) -> None:
    stream = evaluation_rounds(shards, "train", image_size=SIZE, batch_size=8, workers=0, classes=["b/z", "a/y"])
    assert [batch.samples[0].class_name for batch in stream] == ["b/z", "a/y"]


@pytest.mark.parametrize("mask_resize", ["nearest", "bilinear"])
def test_evaluation_passes_on_how_masks_are_resized(shards: Any, mask_resize: Any) -> None:
    stream = evaluation_rounds(shards, "train", image_size=SIZE, batch_size=1, workers=0, mask_resize=mask_resize)
    mask_HW = cast(torch.Tensor, next(stream).samples[0].mask_HW)
    assert mask_HW.all().item() == (mask_resize == "bilinear")


def test_evaluation_names_an_unknown_class_or_an_empty_split(shards: Any) -> None:
    with pytest.raises(ValueError, match=r"no class 'b/zz'; did you mean b/z"):
        evaluation_rounds(shards, "train", image_size=SIZE, batch_size=1, workers=0, classes=["b/zz"])
    with pytest.raises(ValueError, match="no sample of the split 'test'"):
        evaluation_rounds(shards, "test", image_size=SIZE, batch_size=1, workers=0)
    with pytest.raises(ValueError, match="batch of 0"):
        evaluation_rounds(shards, "train", image_size=SIZE, batch_size=0, workers=0)
