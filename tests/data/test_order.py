"""The order: a pure function of (seed, epoch, position), balanced by class, round by round."""

import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

import numpy as np
import pytest

from unimmad.data.reading import order as order_module
from unimmad.data.reading.order import SUBSTITUTES, Sampling, TrainingOrder

Item = tuple[str, int]
SIZES = {"b/wood": 7, "a/bagel": 40, "c/brain": 100, "a/cable": 1}


def make_order(
    sizes: dict[str, int] | None = None,
    *,
    seed: int = 3,
    batch: int = 4,
    accumulation: int = 1,
    samples_of_shard: int = 10,
    sampling: Sampling = "balanced",
) -> TrainingOrder[Item]:
    classes = {name: [(name, i) for i in range(size)] for name, size in (sizes or SIZES).items()}
    return TrainingOrder(
        classes, lambda item: (item[0], item[1] // samples_of_shard), seed, batch, accumulation, sampling
    )


def draw_epoch(order: TrainingOrder[Item], epoch: int = 0) -> list[Item]:
    first = epoch * order.steps_per_epoch
    return [item for step in range(first, first + order.steps_per_epoch) for item in order.at(step)]


def test_the_draw_is_pinned() -> None:
    """A change here breaks the resume of every run that was started before it."""
    order = make_order()
    assert order.at(0) == [("c/brain", 90), ("a/bagel", 3), ("a/cable", 0), ("c/brain", 66)]
    assert order.at(1000) == [("b/wood", 0), ("c/brain", 36), ("a/cable", 0), ("a/cable", 0)]


def test_a_step_does_not_depend_on_what_was_asked_before() -> None:
    forwards, backwards = make_order(), make_order()
    steps = range(4 * forwards.steps_per_epoch)
    assert [forwards.at(s) for s in steps] == [backwards.at(s) for s in reversed(steps)][::-1]


def test_the_order_of_the_class_mapping_does_not_matter() -> None:
    assert draw_epoch(make_order(dict(reversed(SIZES.items())))) == draw_epoch(make_order())


def test_a_pickled_order_draws_the_same() -> None:
    order = make_order()
    copied = pickle.loads(pickle.dumps(order))
    assert draw_epoch(copied, epoch=2) == draw_epoch(order, epoch=2)


def test_positions_do_not_depend_on_the_batch() -> None:
    single, large = draw_epoch(make_order(batch=1)), draw_epoch(make_order(batch=32))
    assert len(single) == sum(SIZES.values())
    assert large == single[: len(large)]


def test_the_last_partial_batch_is_dropped_but_one_batch_remains() -> None:
    assert make_order(batch=32).steps_per_epoch == 148 // 32
    too_large = make_order(batch=1000)
    assert too_large.steps_per_epoch == 1
    assert len(too_large.at(0)) == 1000


def test_epochs_and_seeds_differ() -> None:
    first, second = draw_epoch(make_order()), draw_epoch(make_order(), epoch=1)
    other_seed = draw_epoch(make_order(seed=4))
    agreement = [np.mean([a == b for a, b in zip(first, other, strict=True)]) for other in (second, other_seed)]
    # Agreement by chance: the class with a single sample alone gives 1/16 of the positions.
    assert max(agreement) < 0.25


def test_epoch_of() -> None:
    order = make_order(batch=10)
    assert [order.epoch_of(step) for step in (0, 13, 14, 27, 28)] == [0, 0, 1, 1, 2]


def test_every_class_is_equally_likely() -> None:
    sizes = {f"set/{i}": 1 + 37 * i for i in range(20)}
    counts = Counter(name for epoch in range(3) for name, _ in draw_epoch(make_order(sizes, batch=1), epoch))
    expected = 3 * sum(sizes.values()) / 20
    chi_square = sum((counts[name] - expected) ** 2 / expected for name in sizes)
    # 19 degrees of freedom: 43.8 is exceeded once in 1000 and 5.4 undercut once in 1000.
    assert 5.4 < chi_square < 43.8


def test_neighbouring_positions_are_independent() -> None:
    names = [name for epoch in range(40) for name, _ in draw_epoch(make_order(batch=1), epoch)]
    pairs = Counter(pairwise(names))
    expected = (len(names) - 1) / 16
    chi_square = sum((pairs[a, b] - expected) ** 2 / expected for a in SIZES for b in SIZES)
    assert chi_square < 37.7  # 15 degrees of freedom, once in 1000


@pytest.mark.parametrize("name", ["b/wood", "a/bagel", "a/cable"])
def test_a_round_shows_every_sample_once(name: str) -> None:
    size = SIZES[name]
    # A class of 400 makes the epoch long enough for several rounds of the small ones.
    visits = [item for item in draw_epoch(make_order({**SIZES, "d/large": 400}, batch=1)) if item[0] == name]
    rounds = [visits[first : first + size] for first in range(0, len(visits) - size + 1, size)]
    assert len(rounds) >= 2
    assert all(len(set(one_round)) == size for one_round in rounds)
    assert size == 1 or rounds[0] != rounds[1]


def test_large_classes_go_through_few_shards_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_module, "WINDOW_SAMPLES", 50)
    shard_length = 20
    visits = draw_epoch(make_order({"a/x": 1000}, batch=1, samples_of_shard=shard_length))
    assert len(set(visits)) == 1000
    shards = [item[1] // shard_length for item in visits]
    spans = [_span(shards, shard) for shard in set(shards)]
    # A window holds at most the shards that start within 50 samples: 3 of 20.
    assert max(spans) <= 3 * shard_length
    windows = [shards[first : first + 60] for first in range(0, 1000, 60)]
    assert max(len(set(window)) for window in windows) <= 6
    assert shards != sorted(shards)
    within = [i for i, shard in zip((item[1] for item in visits), shards, strict=True) if shard == shards[0]]
    assert within != sorted(within)


def _span(values: Sequence[int], wanted: int) -> int:
    places = [place for place, value in enumerate(values) if value == wanted]
    return places[-1] - places[0] + 1


def test_natural_sampling_shows_every_sample_once_an_epoch() -> None:
    order = make_order(batch=1, sampling="natural")
    first, second = draw_epoch(order), draw_epoch(order, epoch=1)
    assert sorted(first) == sorted(second) == [(name, i) for name in sorted(SIZES) for i in range(SIZES[name])]
    assert first != second
    names = [name for name, _ in first]
    assert len({tuple(names[start : start + 20]) for start in range(0, 140, 20)}) == 7


def test_natural_sampling_of_more_positions_than_samples() -> None:
    order = make_order({"a/x": 3, "b/y": 2}, batch=12, sampling="natural")
    counts = Counter(order.at(0))
    assert sorted(counts.values()) == [2, 2, 2, 3, 3]


def test_the_natural_draw_is_pinned() -> None:
    assert make_order(sampling="natural").at(1000) == [("c/brain", 2), ("a/bagel", 34), ("a/bagel", 2), ("c/brain", 34)]


def test_substitutes_are_a_function_of_the_position_and_prefer_the_class() -> None:
    small, large = make_order(batch=2), make_order(batch=4)
    drawn = [_first(large.substitutes(5, place)) for place in range(4)]
    assert drawn == [_first(small.substitutes(step, place)) for step in (10, 11) for place in range(2)]
    for (name, _), substitutes in zip(large.at(5), drawn, strict=True):
        assert len(substitutes) == SUBSTITUTES
        assert {other for other, _ in substitutes[: SUBSTITUTES // 2]} == {name}
        assert {other for other, _ in substitutes} != {name}
    assert len({tuple(substitutes) for substitutes in drawn}) == 4


def _first(substitutes: Iterator[Item]) -> list[Item]:
    return list(islice(substitutes, SUBSTITUTES))


def test_substitutes_end_with_what_to_do() -> None:
    substitutes = make_order().substitutes(3, 1)
    _first(substitutes)
    with pytest.raises(ValueError, match=r"step 3: neither .* verify"):
        next(substitutes)


def test_accumulation_sees_the_same_samples_as_one_large_batch() -> None:
    sizes = {"a/x": 30, "a/y": 20}
    whole, parts = make_order(sizes, batch=20), make_order(sizes, batch=5, accumulation=4)
    assert parts.steps_per_epoch == 4 * whole.steps_per_epoch
    for step in range(5):
        assert [item for part in range(4) for item in parts.at(4 * step + part)] == whole.at(step)


@pytest.mark.parametrize(
    ("classes", "seed", "batch", "words"),
    [
        ({}, 0, 1, "no training sample"),
        ({"a/x": [1], "a/y": []}, 0, 1, "class a/y has no training sample"),
        ({"a/x": [1]}, -1, 1, "seed -1"),
        ({"a/x": [1]}, 2**64, 1, "seed"),
        ({"a/x": [1]}, 0, 0, "batch 0"),
    ],
)
def test_bad_input_is_named(classes: dict[str, list[int]], seed: int, batch: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainingOrder(classes, str, seed, batch)


def test_a_negative_step_is_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        make_order().at(-1)
