"""Batches and classes go from rank to rank without the change of a bit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.sample import collate
from unimmad.evaluation.collecting import ScoredBatch
from unimmad.evaluation.letters import (
    batch_letter,
    class_letter,
    drawn_letter,
    read_batch,
    read_class_letter,
    read_drawn,
)
from unimmad.evaluation.run import evaluate_classes
from unimmad.evaluation.scoring import score_on_device
from unimmad.evaluation.shared_drawing import chosen_samples, sample_picture
from unimmad.report.class_pictures import draw_class
from unimmad.report.scored_class import scored_entry

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def batch(checkpoint, small_shards) -> ScoredBatch:
    """Of two datasets; one mask is missing."""
    shards = ShardSet.open([small_shards])
    refs_of = shards.classes("test")
    samples = [
        shards.read(refs_of[name][place], 64) for name in ("solids/rope", "brains/brain_upper") for place in (0, 1)
    ]
    weights_HW = torch.linspace(0, 1, 64).expand(64, 64)
    joined = collate([replace(samples[0], mask_HW=None), replace(samples[1], weights_HW=weights_HW), *samples[2:]])
    return ScoredBatch.of(joined, score_on_device(checkpoint.model, joined, checkpoint.recipe.evaluation, CPU, "fp32"))


def test_a_batch(batch):
    found = read_batch(batch_letter(batch))
    assert [map_HW.dtype for map_HW in found.maps] == [np.float32] * 4
    np.testing.assert_array_equal(found.maps, batch.maps)
    assert found.scores == batch.scores
    np.testing.assert_array_equal(found.leaders_TGK, batch.leaders_TGK)
    for ours, theirs in zip(found.samples, batch.samples, strict=True):
        no_arrays = {"images_MCHW": None, "mask_HW": None, "weights_HW": None}
        assert replace(ours, **no_arrays) == replace(theirs, **no_arrays)
        for name in ("mask_HW", "weights_HW"):
            sent, received = getattr(theirs, name), getattr(ours, name)
            assert (received is None) == (sent is None)
            assert sent is None or torch.equal(received, sent)


def test_a_class_and_its_pictures(checkpoint, small_shards):
    settings, shards = checkpoint.recipe.evaluation, ShardSet.open([small_shards])
    sent = next(evaluate_classes(checkpoint.model, shards, "test", settings, device=CPU, workers=0, progress=False))
    name, found = read_class_letter(class_letter(sent.class_name, sent))
    assert name == "solids/cookie"
    assert scored_entry(found) == scored_entry(sent)
    refs = shards.classes("test")["solids/cookie"]
    draw = partial(sample_picture, checkpoint.model, shards, settings=settings, device=CPU)
    first, *others = chosen_samples(sent, refs, 2, draw)
    assert len(first.parts) == len(first.images) == len(first.shares) == 2
    np.testing.assert_allclose(sum(first.parts), first.map_HW, rtol=1e-4, atol=1e-6)
    drawn = draw_class(sent, [replace(first, misaligned=("depth",)), *others])
    read = read_drawn(drawn_letter(drawn))
    assert replace(read, typical=None) == replace(drawn, typical=None)
    assert drawn.heat_maps.startswith(b"\x89PNG")
    no_arrays = {"images": (), "map_HW": None, "mask_HW": None, "parts": ()}
    ours, theirs = read.typical, drawn.typical
    assert replace(ours, **no_arrays) == replace(theirs, **no_arrays)
    assert ours.map_HW.tobytes() == theirs.map_HW.tobytes()
    assert [part_HW.tobytes() for part_HW in ours.parts] == [part_HW.tobytes() for part_HW in theirs.parts]
    np.testing.assert_array_equal(ours.mask_HW, theirs.mask_HW)
    for (our_name, our_HW3), (their_name, their_HW3) in zip(ours.images, theirs.images, strict=True):
        assert our_name == their_name
        np.testing.assert_array_equal(our_HW3, their_HW3, strict=True)
    without = draw_class(sent, [])
    assert read_drawn(drawn_letter(without)) == without


def test_a_class_of_which_nothing_could_be_read():
    assert read_class_letter(class_letter("solids/rope", None)) == ("solids/rope", None)
