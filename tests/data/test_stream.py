"""The stream: every rank and worker count reads the same list, in order; errors arrive as one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from data.fake_shards import SIZE, FakeShards, expected_list, keys, listed, make_order, train

# Three workers on fewer cores are what some of these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture
def shards(tmp_path: Path) -> Any:
    return FakeShards(tmp_path)


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
