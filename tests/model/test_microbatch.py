from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from benchmarks.tensor_memory import StorageWatch
from unimmad.config import load_recipe
from unimmad.methods.registry import new_model
from unimmad.model.backends import microbatch as parts
from unimmad.model.backends.microbatch import in_microbatches
from unimmad.model.inference import for_inference
from unimmad.model.unimmad import Reconstruction, UniMMAD, whole_batch

SIDE = 64


@pytest.fixture(scope="module")
def model() -> UniMMAD:
    made, _ = new_model(load_recipe("tiny"), seed=0)
    assert made.settings.image_size == SIDE
    return for_inference(made)


def images_of(counts: Sequence[int], device: str = "cpu") -> tuple[Tensor, Sequence[int], Tensor]:
    images_TCHW = torch.randn(sum(counts), 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return images_TCHW.to(device), counts, torch.tensor([slot for count in counts for slot in range(count)])


class Recorder:
    """Passes on to a model, and remembers the counts that came."""

    def __init__(self, model: UniMMAD) -> None:
        self.model = model
        self.counts: list[list[int]] = []

    def __call__(
        self, images_TCHW: Tensor, tokens_per_sample: Sequence[int], slot_of_token_T: Tensor
    ) -> Reconstruction:
        self.counts.append(list(tokens_per_sample))
        return self.model._reconstruct(images_TCHW, tokens_per_sample, slot_of_token_T)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([1, 4, 2], [[1], [4], [2]]),
        ([1, 1, 1, 1, 1], [[1, 1, 1], [1, 1]]),
        ([2, 1, 1, 2], [[2, 1], [1, 2]]),
        ([1, 2], [[1, 2]]),
        ([4], [[4]]),
    ],
)
def test_parts_are_whole_samples_and_give_what_the_batch_gives(model, monkeypatch, counts, expected):
    monkeypatch.setattr(parts, "PART_PIXELS", 3 * SIDE**2)
    recorder = Recorder(model)
    with torch.no_grad():
        ours = in_microbatches(recorder, *images_of(counts))
        whole = whole_batch(model._reconstruct, *images_of(counts))
    assert recorder.counts == expected
    assert ours.batch == whole.batch
    assert torch.equal(ours.sample_of_token_T, whole.sample_of_token_T)
    for mine, wanted in zip(ours.distances, whole.distances, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)
    for mine, wanted in zip(sum(ours.routings, ()), sum(whole.routings, ()), strict=True):
        assert torch.equal(mine.leaders_TK, wanted.leaders_TK)
        for name in ("logits_TL", "probabilities_TL", "scores_TK"):
            torch.testing.assert_close(getattr(mine, name), getattr(wanted, name))


def test_elsewhere_than_on_a_processor_a_batch_stays_whole(monkeypatch):
    monkeypatch.setattr(parts, "PART_PIXELS", SIDE**2)
    came = []
    in_microbatches(lambda _, counts, __: came.append(counts), *images_of([1, 1, 2], "meta"))
    assert came == [[1, 1, 2]]


def test_memory_does_not_grow_with_the_batch_where_images_are_large(model, monkeypatch):
    def peak(samples: int) -> int:
        """Beside the images."""
        inputs = images_of([2] * samples)
        with torch.no_grad(), StorageWatch() as watch:
            inputs[0].view(-1)
            images = watch.current
            model(*inputs)
        return watch.peak - images

    peak(1)  # makes leaders' products
    whole = peak(8)
    monkeypatch.setattr(parts, "PART_PIXELS", 2 * SIDE**2)
    one, eight = peak(1), peak(8)
    assert whole > 4 * one
    assert eight < 1.5 * one
