"""The order of training data: which sample stands at which position of which epoch.

The order is a fixed rule: the sample at a position is a pure function of (seed, epoch, position), whatever machine
asks, how many ranks and workers share the work, or what was read before. A run resumes by its step alone.

An epoch has as many draws as there are training samples. Balanced sampling (the paper's): at every position each
class is equally likely, with replacement over the epoch. Natural sampling: every sample stands once in an epoch.
The draws of one class go round by round; a round is a permutation of all the class's samples. Within a round the
class's shards come in shuffled windows, so that few shards are in use at a time; a class of up to
``WINDOW_SAMPLES`` samples is one window, that is, it is shuffled freely.

Dimension letters: P positions of an epoch, N samples of one class, S shards of one class, R rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from unimmad.data.reading.counter_rng import Purpose, below, counter_rng

T = TypeVar("T")

WINDOW_SAMPLES = 512
"""A window is the shards that start within so many samples. Part of the rule: another value gives another order."""

Sampling = Literal["balanced", "natural"]

SUBSTITUTES = 16
"""Samples that are tried in place of one that cannot be read: half of its class, then half of all."""

_EPOCHS_KEPT = 2


@dataclass(frozen=True)
class _Class:
    """Where one class's samples lie: in the list of all samples, and in its own shards (numbered from 0)."""

    first: int
    shard_of_sample: NDArray[np.int64]
    """(N,)"""
    samples_of_shard: NDArray[np.int64]
    """(S,): how many."""


class TrainingOrder(Generic[T]):
    """The batches of a whole training run, by the number of their step.

    Args:
        classes: the training samples by class name; classes are numbered by sorted name, samples as listed.
        shard_of: names the shard that a sample lies in; called here only and not kept.
        seed: 0 to 2**64 - 1.
        batch: samples of one step over all ranks.
        accumulation: steps that make one optimizer step; an epoch holds whole optimizer steps, so that
            ``accumulation`` steps of ``batch`` samples see what one step of ``accumulation * batch`` sees.
        sampling: ``balanced`` or ``natural``.
        weights: in balanced sampling, how likely each class is, by its name; None: all alike.

    Raises:
        ValueError: no class, a class without samples, or a seed, batch, accumulation or weight out of range.
    """

    def __init__(
        self,
        classes: Mapping[str, Sequence[T]],
        shard_of: Callable[[T], Hashable],
        seed: int,
        batch: int,
        accumulation: int = 1,
        sampling: Sampling = "balanced",
        weights: Mapping[str, int] | None = None,
    ) -> None:
        _check(classes, seed, batch, accumulation)
        self._weights = [1 if weights is None else weights[name] for name in sorted(classes)]
        if min(self._weights) < 1:
            raise ValueError("a class's weight must be 1 or more")
        self.batch = batch
        self.seed = seed
        self.sampling = sampling
        self._samples: list[T] = []
        self._classes: list[_Class] = []
        for _, samples in sorted(classes.items()):
            self._classes.append(_describe(samples, shard_of, first=len(self._samples)))
            self._samples.extend(samples)
        self._steps_per_epoch = accumulation * max(1, len(self._samples) // (batch * accumulation))
        self._epochs: dict[int, NDArray[np.int64]] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one epoch: whole optimizer steps, at least one; samples left over are dropped."""
        return self._steps_per_epoch

    def epoch_of(self, step: int) -> int:
        """The epoch that a global step belongs to, from 0."""
        return step // self._steps_per_epoch

    def position(self, step: int, place: int) -> tuple[int, int]:
        """Epoch, and position in it, of the sample at ``place`` of a global step's batch."""
        epoch, step_of_epoch = divmod(step, self._steps_per_epoch)
        return epoch, step_of_epoch * self.batch + place

    def at(self, step: int) -> list[T]:
        """The ``batch`` samples of a global step (0 is the run's first), in the order of their positions."""
        if step < 0:
            raise ValueError(f"training steps count from 0, step {step} does not exist")
        epoch, step_of_epoch = divmod(step, self._steps_per_epoch)
        sample_P = self._epoch(epoch)
        first = step_of_epoch * self.batch
        return [self._samples[sample] for sample in sample_P[first : first + self.batch]]

    def substitutes(self, step: int, place: int) -> Iterator[T]:
        """What to read instead of the sample at ``place`` of a step's batch, in this order.

        As fixed as the order itself: a function of (seed, epoch, position) alone.

        Raises:
            ValueError: at the end of ``SUBSTITUTES`` samples.
        """
        epoch, position = self.position(step, place)
        own = self._class_of(int(self._epoch(epoch)[position]))
        for attempt, raw in enumerate(counter_rng(self.seed, Purpose.SUBSTITUTE, epoch, position, SUBSTITUTES)):
            if attempt < SUBSTITUTES // 2:
                yield self._samples[own.first + int(below(raw, len(own.shard_of_sample)))]
            else:
                yield self._samples[int(below(raw, len(self._samples)))]
        raise ValueError(
            f"step {step}: neither a sample nor any of {SUBSTITUTES} drawn in its place can be read; "
            "see which shards are damaged with unimmad shards verify"
        )

    def _class_of(self, sample: int) -> _Class:
        return next(described for described in reversed(self._classes) if described.first <= sample)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        """Sample at each position of an epoch; kept for a while, since neighbouring steps ask again."""
        if epoch not in self._epochs:
            while len(self._epochs) >= _EPOCHS_KEPT:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = self._draw_epoch(epoch)
        return self._epochs[epoch]

    def _draw_epoch(self, epoch: int) -> NDArray[np.int64]:
        positions = self._steps_per_epoch * self.batch
        if self.sampling == "balanced":
            class_P = _draw_classes(self.seed, epoch, positions, self._weights)
        else:
            sizes = [len(described.shard_of_sample) for described in self._classes]
            class_P = _permute_classes(self.seed, epoch, positions, sizes)
        # All positions of class 0 first, then those of class 1, ..., each in ascending order.
        position_P = np.argsort(class_P, kind="stable")
        visits_P = [
            self._classes[number].first + _draw_visits(self.seed, epoch, number, self._classes[number], int(draws))
            for number, draws in enumerate(np.bincount(class_P, minlength=len(self._classes)))
            if draws
        ]
        sample_P = np.empty(positions, dtype=np.int64)
        sample_P[position_P] = np.concatenate(visits_P)
        return sample_P


def _check(classes: Mapping[str, Sequence[T]], seed: int, batch: int, accumulation: int) -> None:
    if not classes:
        raise ValueError("the data holds no training sample; training needs normal samples in the split 'train'")
    for name, samples in classes.items():
        if not samples:
            raise ValueError(f"class {name} has no training sample; give it some or leave the class out")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed {seed} is out of range; choose one from 0 to 2**64 - 1")
    if batch < 1 or accumulation < 1:
        raise ValueError(f"batch {batch} and accumulation {accumulation} must both be at least 1")


def _describe(samples: Sequence[T], shard_of: Callable[[T], Hashable], first: int) -> _Class:
    """Number a class's shards by first appearance, which unlike a set's order is the same everywhere."""
    numbers: dict[Hashable, int] = {}
    shard_of_sample_N = np.array([numbers.setdefault(shard_of(sample), len(numbers)) for sample in samples])
    return _Class(first, shard_of_sample_N, np.bincount(shard_of_sample_N))


def _draw_classes(seed: int, epoch: int, positions: int, weights: Sequence[int]) -> NDArray[np.int64]:
    raw_P = counter_rng(seed, Purpose.CLASS_OF_POSITION, epoch, 0, positions)
    share_P = below(raw_P, sum(weights)).astype(np.int64)
    return np.searchsorted(np.cumsum(weights), share_P, side="right")


def _permute_classes(seed: int, epoch: int, positions: int, sizes: Sequence[int]) -> NDArray[np.int64]:
    """Each class as often as it has samples, shuffled; again and again where the positions are more than samples."""
    total = sum(sizes)
    rounds = -(-positions // total)
    key_RT = counter_rng(seed, Purpose.CLASS_OF_POSITION, epoch, 0, rounds * total).reshape(rounds, total)
    class_T = np.repeat(np.arange(len(sizes)), sizes)
    return class_T[np.argsort(key_RT, axis=-1, kind="stable")].reshape(-1)[:positions]


def _draw_visits(seed: int, epoch: int, number: int, described: _Class, draws: int) -> NDArray[np.int64]:
    """The samples (numbered within the class) of a class's first ``draws`` draws of an epoch."""
    samples, shards = len(described.shard_of_sample), len(described.samples_of_shard)
    rounds = -(-draws // samples)
    key_RN = counter_rng(seed, Purpose.PLACE_OF_SAMPLE, epoch, number, rounds * samples).reshape(rounds, samples)
    key_RS = counter_rng(seed, Purpose.PLACE_OF_SHARD, epoch, number, rounds * shards).reshape(rounds, shards)
    window_RN = _windows(key_RS, described.samples_of_shard)[:, described.shard_of_sample]
    return np.lexsort((key_RN, window_RN), axis=-1).reshape(-1)[:draws]


def _windows(key_RS: NDArray[np.uint64], samples_of_shard_S: NDArray[np.int64]) -> NDArray[np.int64]:
    """The window of each shard in each round: shards are shuffled, then cut where samples fill a window."""
    shard_RS = np.argsort(key_RS, axis=-1, kind="stable")
    length_RS = samples_of_shard_S[shard_RS]
    start_RS = np.cumsum(length_RS, axis=-1) - length_RS
    window_RS = np.empty_like(start_RS)
    np.put_along_axis(window_RS, shard_RS, start_RS // WINDOW_SAMPLES, axis=-1)
    return window_RS
