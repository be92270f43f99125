"""The classes that one rank collects: all batches of a class come to it, whichever rank scored them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from itertools import accumulate

from unimmad.evaluation.collecting import ClassScores, MetricsThread, ScoredBatch
from unimmad.report.scored_class import ScoredClass


class OwnClasses:
    """From batches to finished classes."""

    def __init__(
        self,
        names: Iterable[str],
        metrics: MetricsThread,
        new_scores: Callable[[str], ClassScores],
    ) -> None:
        """
        Args:
            names: ``DATASET/CLASS`` of this rank's classes, in index order.
            metrics: where maps are collected.
            new_scores: what an empty class is collected in.
        """
        self._pending = deque(names)
        self._finished: dict[str, Future[ScoredClass] | Future[None]] = {}
        self._metrics = metrics
        self._new_scores = new_scores
        self._begun: dict[str, ClassScores] = {}

    @property
    def left(self) -> int:
        """Classes that ``complete`` has still to give."""
        return len(self._pending)

    def add(self, class_name: str, batch: Callable[[], ScoredBatch]) -> None:
        """Take in the next batch of a class; raises what an earlier one raised."""
        if class_name not in self._begun:
            self._begun[class_name] = self._new_scores(class_name)
        self._metrics.add(self._begun[class_name], batch)

    def finish(self, class_name: str) -> None:
        """The class has all its batches, or none of its samples could be read."""
        scores = self._begun.pop(class_name, None)
        self._finished[class_name] = _nothing() if scores is None else self._metrics.finish(scores)

    def complete(self, wait: bool = False) -> Iterator[tuple[str, ScoredClass | None]]:
        """The next classes in index order, as far as they are finished; None of one without a readable sample.

        Args:
            wait: for one of them; all must have been finished.
        """
        while self._pending and (wait or self._is_done(self._pending[0])):
            name = self._pending.popleft()
            yield name, self._finished.pop(name).result()
            wait = False

    def _is_done(self, name: str) -> bool:
        return name in self._finished and self._finished[name].done()


def last_rounds(samples: Mapping[str, int], batch_size: int, ranks: int) -> dict[str, int]:
    """In which round each class's last batch is scored, where ``ranks`` ranks score a batch each in a round.

    Args:
        samples: of the classes to score, in order.
        batch_size: samples of a batch, at most.
        ranks: how many there are.
    """
    batches = accumulate(-(-count // batch_size) for count in samples.values())
    return {name: (end - 1) // ranks for name, end in zip(samples, batches, strict=True)}


def _nothing() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future
