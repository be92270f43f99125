"""Corrupt samples: training and evaluation stop, or go on without them, and count what they left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data.fake_shards import SIZE, FakeShards, keys, listed, train

from unimmad.data.reading.skipping import SkipLog, summary
from unimmad.data.reading.stream import evaluation_rounds

# Three workers on fewer cores are what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture
def shards(tmp_path: Path) -> Any:
    return FakeShards(tmp_path)


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
