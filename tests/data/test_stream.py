"""The stream: every rank and worker count reads the same list, in order; errors arrive as one line."""

import io
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from unimmad.data.index import DatasetEntry, Modality
from unimmad.data.layouts.source_set import SourceFile, SourceSample, SourceSet
from unimmad.data.location import parse_data_folder
from unimmad.data.reading.order import TrainingOrder
from unimmad.data.reading.shard_cache import ShardCache
from unimmad.data.reading.shard_set import CorruptSampleError, ShardSet
from unimmad.data.reading.skipping import OnError, SkipLog, summary
from unimmad.data.reading.stream import evaluation_rounds, expect_workers, training_batches
from unimmad.data.sample import Batch, Sample
from unimmad.data.writing.shards import write_shards

# Three workers on fewer cores are what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

SIZE = 4
COUNTS = {"a/x": 5, "a/y": 3, "b/z": 8}


@dataclass(frozen=True)
class FakeRef:
    class_name: str
    number: int

    @property
    def entry(self) -> Any:
        dataset, name = self.class_name.split("/")
        return SimpleNamespace(key=f"{name}_{self.number}", dataset=dataset, class_name=name, images={"rgb": None})


class FakeShards:
    """Stands in for a ShardSet: one file a sample, so that a test can take one away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[FakeRef] = []
        """Every read by this process."""
        for refs in self.classes("train").values():
            for ref in refs:
                np.save(self._path(ref), np.full((SIZE, SIZE), ref.number, dtype=np.float32))

    def classes(self, split: str) -> dict[str, tuple[FakeRef, ...]]:
        if split != "train":
            return {}
        return {name: tuple(FakeRef(name, i) for i in range(count)) for name, count in COUNTS.items()}

    def read(self, ref: FakeRef, image_size: int, mask_resize: str = "nearest", **_: Any) -> Sample:
        self.asked.append(ref)
        if not self._path(ref).is_file():
            raise ValueError(f"{self._path(ref).name} is gone")
        if not self._path(ref).stat().st_size:
            raise CorruptSampleError(f"{ref.class_name}.tar", f"{ref.class_name}.tar: {ref.entry.key}.png: is broken")
        time.sleep(0.001 * ref.number)  # so that workers finish at different times
        image_HW = torch.from_numpy(np.load(self._path(ref), allow_pickle=False))
        return Sample(
            key=ref.entry.key,
            dataset=ref.entry.dataset,
            class_name=ref.class_name,
            defect="good",
            anomalous=False,
            modalities=("rgb",),
            slots=(0,),
            images_MCHW=image_HW.expand(1, 3, image_size, image_size),
            mask_HW=torch.full((image_size, image_size), mask_resize == "bilinear"),
        )

    def spoil(self, *keys: str) -> None:
        """Make samples corrupt."""
        for key in keys:
            (self.folder / f"{key}.npy").write_bytes(b"")

    def _path(self, ref: FakeRef) -> Path:
        return self.folder / f"{ref.entry.key}.npy"


@pytest.fixture
def shards(tmp_path: Path) -> Any:
    return FakeShards(tmp_path)


def make_order(shards: Any, batch: int = 4) -> TrainingOrder[Any]:
    return TrainingOrder(shards.classes("train"), lambda ref: ref.class_name, seed=1, batch=batch)


def train(
    shards: Any,
    start: int,
    end: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    batch: int = 4,
    on_error: OnError = "stop",
    skip_log: SkipLog | None = None,
) -> Any:
    return training_batches(
        shards,
        make_order(shards, batch),
        image_size=SIZE,
        rank=rank,
        world_size=world_size,
        workers=workers,
        start_step=start,
        end_step=end,
        on_error=on_error,
        skip_log=skip_log,
    )


def keys(batch: Batch) -> list[str]:
    return [sample.key for sample in batch.samples]


def listed(stream: Iterator[tuple[int, Batch]]) -> list[tuple[int, list[str]]]:
    return [(step, keys(batch)) for step, batch in stream]


def expected_list(shards: Any, start: int, end: int, batch: int = 4) -> list[tuple[int, list[str]]]:
    order = make_order(shards, batch)
    return [(step, [ref.entry.key for ref in order.at(step)]) for step in range(start, end)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_read_the_global_list(shards: Any, world_size: int) -> None:
    parts = [listed(train(shards, 0, 9, rank=rank, world_size=world_size)) for rank in range(world_size)]
    joined = [(step, [key for part in parts for key in part[step][1]]) for step, _ in expected_list(shards, 0, 9)]
    assert joined == expected_list(shards, 0, 9)


@pytest.mark.long
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4])
def test_worlds_and_workers_read_one_global_list(shards: Any, world_size: int, workers: int) -> None:
    check_global_list(shards, world_size, workers)


def test_three_ranks_of_two_workers_read_the_global_list(shards: Any) -> None:
    check_global_list(shards, world_size=3, workers=2)


def check_global_list(shards: Any, world_size: int, workers: int) -> None:
    """Seven steps, which no number of workers above 1 divides, from the middle of an epoch over its end."""
    parts = [
        listed(train(shards, 3, 10, rank=rank, world_size=world_size, workers=workers, batch=24))
        for rank in range(world_size)
    ]
    assert [len(part) for part in parts] == [7] * world_size
    steps = zip(*parts, strict=True)
    joined = [(of_ranks[0][0], [key for _, keys_of_rank in of_ranks for key in keys_of_rank]) for of_ranks in steps]
    assert joined == expected_list(shards, 3, 10, batch=24)


def test_resuming_reads_what_would_have_come_and_nothing_before(shards: Any) -> None:
    """The position is one integer, the step; and another number of ranks goes on with the same list."""
    undisturbed = listed(train(shards, 0, 9))
    shards.asked.clear()
    stream = train(shards, 5, 9)
    assert shards.asked == []
    assert [next(stream)[0], shards.asked] == [5, make_order(shards).at(5)]
    assert listed(train(shards, 5, 9)) == undisturbed[5:]
    halves = [listed(train(shards, 5, 9, rank=rank, world_size=2)) for rank in range(2)]
    assert [(a[0], a[1] + b[1]) for a, b in zip(*halves, strict=True)] == undisturbed[5:]


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("end", [13, 15])
def test_workers_keep_the_order(shards: Any, workers: int, end: int) -> None:
    """From the middle of an epoch, over its end, and for a count of steps that workers do not divide."""
    assert listed(train(shards, 2, end, workers=workers)) == expected_list(shards, 2, end)


def test_images_are_those_of_the_samples(shards: Any) -> None:
    for _, batch in train(shards, 0, 4, workers=1):
        assert batch.images_TCHW.shape == (4, 3, SIZE, SIZE)
        assert keys(batch) == [
            f"{sample.class_name[2:]}_{int(image_CHW[0, 0, 0])}"
            for sample, image_CHW in zip(batch.samples, batch.images_TCHW, strict=True)
        ]


def test_nothing_to_do_is_an_empty_stream(shards: Any) -> None:
    assert listed(train(shards, 5, 5, workers=1)) == []


def test_fewer_steps_than_workers(shards: Any) -> None:
    assert listed(train(shards, 7, 8, workers=3)) == expected_list(shards, 7, 8)


def test_environment_variables_do_not_split_the_stream(shards: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER", "1")
    monkeypatch.setenv("NUM_WORKERS", "2")
    assert listed(train(shards, 0, 3)) == expected_list(shards, 0, 3)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_random_state_is_left_alone(shards: Any, workers: int) -> None:
    before = torch.random.get_rng_state()
    listed(train(shards, 0, 2, workers=workers))
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_batch_that_does_not_divide_names_the_nearest_sizes(shards: Any) -> None:
    with pytest.raises(ValueError, match=r"4 samples does not divide among 3 ranks.* 3 and 6"):
        train(shards, 0, 1, world_size=3)
    with pytest.raises(ValueError, match=r"among 8 ranks; the nearest sizes that do: 8;"):
        train(shards, 0, 1, world_size=8)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_vanished_is_one_readable_line(shards: Any, workers: int) -> None:
    order = make_order(shards)
    gone = order.at(3)[0].entry.key
    first = next(step for step in range(4) if gone in [ref.entry.key for ref in order.at(step)])
    (shards.folder / f"{gone}.npy").unlink()
    stream = train(shards, 0, 6, workers=workers)
    assert [next(stream)[0] for _ in range(first)] == list(range(first))
    with pytest.raises(ValueError, match=rf"^{gone}\.npy is gone$"):
        next(stream)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_sample_stops_by_default(shards: Any, workers: int) -> None:
    shards.spoil("y_1")
    with pytest.raises(ValueError, match=r"^a/y\.tar: y_1\.png: is broken$"):
        listed(train(shards, 0, 20, workers=workers))


def test_skipping_puts_the_orders_own_choice_in_its_place(shards: Any) -> None:
    """The same list at any number of ranks and workers, of batches that keep their size."""
    whole = listed(train(shards, 0, 12))
    shards.spoil("y_1", "z_3")
    log = SkipLog("another sample takes its place")
    alone = listed(train(shards, 0, 12, on_error="skip", skip_log=log))
    for (_, before), (_, after) in zip(whole, alone, strict=True):
        assert len(after) == 4
        assert not {"y_1", "z_3"} & set(after)
        assert [key for key in before if key not in ("y_1", "z_3")] == [
            new for old, new in zip(before, after, strict=True) if old not in ("y_1", "z_3")
        ]
        assert [key[0] for key in before] == [key[0] for key in after]
    hits = sum(key in ("y_1", "z_3") for _, batch in whole for key in batch)
    assert 0 < hits <= log.total
    halves = [listed(train(shards, 0, 12, rank=r, world_size=2, workers=r, on_error="skip")) for r in range(2)]
    assert [(a[0], a[1] + b[1]) for a, b in zip(*halves, strict=True)] == alone


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_skipped_is_counted_and_logged_once_a_shard(
    shards: Any, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    shards.spoil("y_0", "y_1", "z_3")
    log = SkipLog("another sample takes its place")
    listed(train(shards, 0, 16, workers=workers, on_error="skip", skip_log=log))
    assert set(log.shards) == {"a/y.tar", "b/z.tar"}
    assert len(caplog.records) == 2
    assert "is broken; another sample takes its place" in caplog.text
    said = summary(log.shards)
    assert said.startswith(f"{log.total} samples could not be read, in 2 shards: ")
    assert f"a/y.tar ({log.shards['a/y.tar']})" in said


def test_a_class_that_is_corrupt_as_a_whole_gives_its_places_to_others(shards: Any) -> None:
    shards.spoil("y_0", "y_1", "y_2")
    batches = listed(train(shards, 0, 12, on_error="skip"))
    assert {key[0] for _, batch in batches for key in batch} == {"x", "z"}
    assert {len(batch) for _, batch in batches} == {4}


def test_nothing_readable_is_an_error_in_the_end(shards: Any) -> None:
    shards.spoil(*(ref.entry.key for refs in shards.classes("train").values() for ref in refs))
    with pytest.raises(ValueError, match=r"step 0: neither .*unimmad shards verify"):
        listed(train(shards, 0, 1, on_error="skip"))


def test_skipping_does_not_hide_what_is_no_fault_of_a_sample(shards: Any) -> None:
    (shards.folder / "y_1.npy").unlink()
    with pytest.raises(ValueError, match="is gone"):
        listed(train(shards, 0, 20, on_error="skip"))


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_leaves_corrupt_samples_out(shards: Any, workers: int) -> None:
    shards.spoil("x_1", "y_0", "y_1", "y_2")
    log = SkipLog("it is left out")
    stream = evaluation_rounds(
        shards, "train", image_size=SIZE, batch_size=3, workers=workers, on_error="skip", skip_log=log
    )
    batches = [keys(batch) for batch in stream if batch is not None]
    assert batches[:2] == [["x_0", "x_2"], ["x_3", "x_4"]]
    assert len(batches) == 5
    assert dict(log.shards) == {"a/x.tar": 1, "a/y.tar": 3}


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


def _png(name: str, number: int) -> SourceFile:
    file = io.BytesIO()
    Image.new("L", (8, 8), 10 * number).save(file, "png")
    return SourceFile(f"{name}_{number}", ".png", file.getvalue)


def _real_stream(shards: ShardSet, workers: int) -> Iterator[tuple[int, Batch]]:
    order = TrainingOrder(shards.classes("train"), lambda ref: (ref.folder, ref.entry.shard), seed=0, batch=4)
    return training_batches(
        shards, order, image_size=8, rank=0, world_size=1, workers=workers, start_step=0, end_step=12
    )


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
