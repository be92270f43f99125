"""Modality dropout: a rule like the order's, and what a batch looks like under it."""

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from unimmad.data.index import DatasetEntry, Modality
from unimmad.data.layouts.source_set import SourceFile, SourceSample, SourceSet
from unimmad.data.reading.modality_dropout import ModalityDropout
from unimmad.data.reading.order import TrainingOrder
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.reading.skipping import OnError
from unimmad.data.reading.stream import training_batches
from unimmad.data.sample import Batch
from unimmad.data.writing.shards import write_shards

# Two workers on fewer cores are what one of these tests is about.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

SEQUENCES = ("flair", "t1", "t2")
Listed = list[tuple[int, list[tuple[str, tuple[int, ...]]]]]


def test_the_draw_is_pinned() -> None:
    """A change here breaks the resume of every run with dropout that was started before it."""
    dropout = ModalityDropout(seed=3, probability=0.5)
    drawn = ["".join(dropout.kept("abcd", epoch=1, position=position)) for position in range(8)]
    assert drawn == ["ab", "a", "ad", "acd", "d", "d", "c", "bd"]


def test_each_modality_is_left_out_as_often_as_asked() -> None:
    dropout = ModalityDropout(seed=0, probability=0.3)
    drawn = [dropout.kept((0, 1, 2, 3), epoch=0, position=position) for position in range(4000)]
    counts = Counter(slot for kept in drawn for slot in kept)
    # Where all four would go (0.3 to the fourth) one stays; 4 standard deviations of 4000 draws are 0.03.
    assert all(abs(counts[slot] / 4000 - 0.7 - 0.3**4 / 4) < 0.03 for slot in range(4))
    both = sum({0, 1} <= set(kept) for kept in drawn) / 4000
    assert abs(both - 0.49) < 0.035, "modalities are drawn independently"


def test_one_modality_stays_and_each_has_its_turn() -> None:
    certain = ModalityDropout(seed=0, probability=1.0)
    drawn = [certain.kept("abc", epoch=0, position=position) for position in range(600)]
    assert {len(kept) for kept in drawn} == {1}
    assert min(Counter(kept[0] for kept in drawn).values()) > 140
    assert ModalityDropout(0, 0.9).kept("a", 0, 0) == ["a"]


def test_seeds_epochs_and_positions_differ() -> None:
    def drawn(seed: int, epoch: int, first: int) -> list[list[str]]:
        return [ModalityDropout(seed, 0.5).kept("abcd", epoch, position) for position in range(first, first + 20)]

    assert drawn(0, 0, 0) == drawn(0, 0, 0)
    assert len({str(drawn(*at)) for at in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 20))}) == 4


@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability(probability: float) -> None:
    with pytest.raises(ValueError, match="choose 0 to 1"):
        ModalityDropout(0, probability)


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    """Eight brains of three sequences, and four tiles of one modality."""
    modalities = tuple(Modality(name=name, slot=slot, kind="gray") for slot, name in enumerate(SEQUENCES))
    sets = [
        _set("brains", 8, modalities),
        _set("tiles", 4, (Modality(name="gray", slot=1, kind="gray"),)),
    ]
    write_shards(sets, tmp_path / "set", progress=False)
    return ShardSet.open([tmp_path / "set"])


def _set(name: str, count: int, modalities: tuple[Modality, ...]) -> SourceSet:
    def image(number: int, slot: int) -> SourceFile:
        file = io.BytesIO()
        Image.new("L", (8, 8), 16 * number + slot).save(file, "png")
        return SourceFile(f"{name} {number}", ".png", file.getvalue)

    samples = tuple(
        SourceSample(f"{name}_{n}", "x", "train", "good", {m.name: image(n, m.slot) for m in modalities}, None)
        for n in range(count)
    )
    return SourceSet(name, "made by this test", DatasetEntry(field="f", modalities=modalities), samples)


def stream(
    shards: ShardSet,
    dropout: float,
    *,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    start: int = 0,
    on_error: OnError = "stop",
) -> Iterator[tuple[int, Batch]]:
    order = TrainingOrder(shards.classes("train"), lambda ref: (ref.folder, ref.entry.shard), seed=0, batch=4)
    return training_batches(
        shards,
        order,
        image_size=8,
        rank=rank,
        world_size=world,
        workers=workers,
        start_step=start,
        end_step=9,
        on_error=on_error,
        modality_dropout=dropout,
    )


def listed(batches: Iterator[tuple[int, Batch]]) -> Listed:
    return [(step, [(sample.key, sample.slots) for sample in batch.samples]) for step, batch in batches]


def test_without_it_every_modality_is_read(shards: ShardSet) -> None:
    for _, of_step in listed(stream(shards, 0.0)):
        assert all(slots == ((0, 1, 2) if key.startswith("brains") else (1,)) for key, slots in of_step)


def test_the_samples_stay_and_their_images_are_those_of_the_whole(shards: ShardSet) -> None:
    lengths = set()
    for (_, batch), (_, whole) in zip(stream(shards, 0.5), stream(shards, 0.0), strict=True):
        assert [sample.key for sample in batch.samples] == [sample.key for sample in whole.samples]
        tokens = zip(whole.sample_of_token_T.tolist(), whole.slot_of_token_T.tolist(), strict=True)
        image_of = dict(zip(tokens, whole.images_TCHW, strict=True))
        kept = zip(batch.sample_of_token_T.tolist(), batch.slot_of_token_T.tolist(), strict=True)
        for token, image_CHW in zip(kept, batch.images_TCHW, strict=True):
            assert torch.equal(image_CHW, image_of[token])
        for sample in batch.samples:
            assert len(sample.slots) == len(sample.modalities)
            assert sample.modalities == (
                ("gray",) if sample.dataset == "tiles" else tuple(SEQUENCES[s] for s in sample.slots)
            )
        lengths |= {len(sample.slots) for sample in batch.samples if sample.dataset == "brains"}
    assert lengths == {1, 2, 3}


@pytest.mark.parametrize(("world", "workers"), [(2, 0), (4, 1), (1, 2)])
def test_ranks_and_workers_leave_out_the_same(shards: ShardSet, world: int, workers: int) -> None:
    parts = [listed(stream(shards, 0.5, rank=rank, world=world, workers=workers)) for rank in range(world)]
    joined = [(parts[0][step][0], [one for part in parts for one in part[step][1]]) for step in range(9)]
    assert joined == listed(stream(shards, 0.5))


def test_resuming_leaves_out_the_same(shards: ShardSet) -> None:
    assert listed(stream(shards, 0.5, start=5)) == listed(stream(shards, 0.5))[5:]


def test_a_sample_in_the_place_of_a_corrupt_one_loses_the_same(shards: ShardSet) -> None:
    whole = listed(stream(shards, 0.5))
    entry = next(ref.entry for ref in shards.classes("train")["brains/x"] if ref.entry.key == "brains_3")
    with (Path(str(shards.folders[0])) / shards.indexes[0].shards[entry.shard].name).open("r+b") as file:
        for member in entry.images.values():
            file.seek(member.offset)
            file.write(b"nothing")
    replaced = 0
    for (_, before), (_, after) in zip(whole, listed(stream(shards, 0.5, on_error="skip")), strict=True):
        for (old, old_slots), (new, new_slots) in zip(before, after, strict=True):
            replaced += old != new
            assert new_slots == old_slots
    assert replaced > 0
