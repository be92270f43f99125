"""What ranks hand over to each other while they evaluate: scored batches to the rank that collects their class, and
finished classes to rank 0. All batches of a class come to one rank, whichever scored them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from unimmad.data.sample import Batch
from unimmad.evaluation.collecting import ClassScores, MetricsThread, ScoredBatch
from unimmad.evaluation.letters import batch_letter, class_letter, read_batch, read_class_letter
from unimmad.evaluation.scoring import BatchScores
from unimmad.evaluation.tiling import OriginalScores
from unimmad.ranks.exchange import Letter, Ranks
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


Finished = tuple[str, ScoredClass | None]
"""A class and what came of it: nothing where none of its samples could be read."""


class _Note(NamedTuple):
    """What a rank tells all others."""

    left: int
    """Classes that it has still to hand over."""
    samples: int = 0
    """How many it has scored since the last exchange."""
    class_name: str | None = None
    """Theirs. Their letter is the sender's first to the rank that collects the class."""


class Exchange:
    """Called by all ranks once a round, and then until all classes are handed over."""

    def __init__(self, ranks: Ranks, collector_of: Mapping[str, int], own: OwnClasses) -> None:
        """
        Args:
            ranks: those that share the work.
            collector_of: the rank of each class.
            own: this rank's classes.
        """
        self._ranks = ranks
        self._collector_of = collector_of
        self._own = own
        self.samples = 0
        """Scored since the last exchange, over all ranks."""
        self.left_anywhere = True
        """Whether some rank has still a class to hand over."""

    def __call__(
        self, completed: Iterable[Finished], scored: tuple[Batch, BatchScores | OriginalScores] | None = None
    ) -> list[Finished]:
        """
        Args:
            completed: this rank's classes that are ready.
            scored: this rank's batch of the round.

        Returns:
            On rank 0 all ranks' classes that are ready, elsewhere nothing.

        Raises:
            ValueError: a map is not finite, or another rank had to stop.
        """
        finished, letters = list(completed), []
        note = _Note(self._own.left)
        if scored is not None:
            class_name = scored[0].samples[0].class_name
            note = _Note(self._own.left, scored[0].size, class_name)
            if (collector := self._collector_of[class_name]) != self._ranks.rank:
                letters.append(Letter(collector, batch_letter(ScoredBatch.of(*scored))))
        if not self._ranks.is_main:
            letters += [Letter(0, class_letter(*one)) for one in finished]
            finished = []
        notes, inbox = self._ranks.exchange(note, letters)
        self.samples = sum(note.samples for note in notes)
        self.left_anywhere = any(note.left for note in notes)
        for sender, note in enumerate(notes):  # batches follow each other from rank to rank
            if note.class_name is not None and self._collector_of[note.class_name] == self._ranks.rank:
                if sender == self._ranks.rank:
                    assert scored is not None
                    self._own.add(note.class_name, partial(ScoredBatch.of, *scored))
                else:
                    self._own.add(note.class_name, partial(read_batch, inbox[sender].pop(0)))
        return finished + [read_class_letter(content) for letters in inbox for content in letters]


class InOrder:
    """Finished classes in index order, whatever the order in which they become ready."""

    def __init__(self, names: Iterable[str]) -> None:
        self._pending = deque(names)
        self._ready: dict[str, ScoredClass | None] = {}

    def take(self, finished: Iterable[Finished]) -> Iterator[ScoredClass]:
        """Add some; gives those whose turn has come."""
        self._ready.update(finished)
        while self._pending and self._pending[0] in self._ready:
            scored = self._ready.pop(self._pending.popleft())
            if scored is not None:
                yield scored
