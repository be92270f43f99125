"""Requests of many clients, decoded by threads of their own and scored together: what waits becomes one batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, Queue
from threading import Lock, Thread

from unimmad.inference.detector import DEFAULT_BATCH_SIZE, Detector
from unimmad.inference.inputs import InputSample
from unimmad.inference.prediction import Prediction
from unimmad.inference.reading import PreparedSample
from unimmad.inference.reading_ahead import READERS

LONGEST_RETRY = 60
"""Seconds that a refused client is told to wait, at most."""
_NEW_WEIGHT = 0.2
"""Of the newest batch in the mean time of a sample."""


class NotScoredError(Exception):
    """A sample that could be read was not scored, or came to no finite score: nothing that its sender can mend."""


class QueueFullError(Exception):
    """As many requests as may be are in work or waiting."""

    def __init__(self, retry_after: int) -> None:
        """``retry_after``: seconds until room is likely."""
        super().__init__(retry_after)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Batching:
    """How requests are put together."""

    batch_size: int = DEFAULT_BATCH_SIZE
    """Samples, and views of them, that are scored together at most."""
    max_wait: float = 0.005
    """Seconds that a sample waits for others to share its batch."""
    queue_size: int = 32
    """Requests that may be in the house at once: arriving, waiting or in work."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"a batch size of {self.batch_size} must be 1 or more")
        if not 0 <= self.max_wait <= 10:
            raise ValueError(f"a wait of {self.max_wait:g} seconds for a batch must be 0 to 10")
        if self.queue_size < self.batch_size:
            raise ValueError(
                f"a queue of {self.queue_size} requests never fills a batch of {self.batch_size}: make it at least that"
            )


@dataclass(frozen=True)
class Question:
    """One sample that is to be scored."""

    sample: InputSample
    class_name: str | None = None
    """As for ``Detector.predict``."""
    with_pictures: bool = False


@dataclass(frozen=True)
class _Job:
    question: Question
    answer: Future[Prediction] = field(default_factory=Future)
    prepared: list[PreparedSample] = field(default_factory=list)


class BatchScorer:
    """Answers questions from any thread; one thread scores.

    Few samples are decoded ahead of the batch that is scored, so that large images wait as the bytes they came in.
    """

    def __init__(
        self,
        detector: Detector,
        batching: Batching,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        """``on_batch``: told of each batch its samples and the seconds it took."""
        self.batching = batching
        self._detector = detector
        self._on_batch = on_batch
        self._inside = 0
        self._seconds_a_sample = 0.0
        self._last_size = 1
        self._lock = Lock()
        self._arrived: Queue[_Job | None] = Queue()
        self._readable: Queue[_Job | None] = Queue(maxsize=batching.batch_size)
        self._readers = [Thread(target=self._read, name=f"reader-{number}", daemon=True) for number in range(READERS)]
        self._scorer = Thread(target=self._score_all, name="scorer", daemon=True)
        for thread in (*self._readers, self._scorer):
            thread.start()

    @property
    def inside(self) -> int:
        """Requests that were admitted and are not answered yet."""
        return self._inside

    @property
    def alive(self) -> bool:
        """Whether its threads run, as they do until ``close``."""
        return all(thread.is_alive() for thread in (*self._readers, self._scorer))

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place in the queue, for as long as a request is in the house.

        Raises:
            QueueFullError: there is none.
        """
        with self._lock:
            if self._inside >= self.batching.queue_size:
                seconds = math.ceil(self._inside * self._seconds_a_sample)
                raise QueueFullError(min(max(1, seconds), LONGEST_RETRY))
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1

    def ask(self, question: Question) -> Future[Prediction]:
        """What the detector says; a ValueError where the sample can't be read or does not fit."""
        job = _Job(question)
        self._arrived.put(job)
        return job.answer

    def close(self) -> None:
        """End the threads, after all that was asked is answered."""
        for _ in self._readers:
            self._arrived.put(None)
        for reader in self._readers:
            reader.join()
        self._readable.put(None)
        self._scorer.join()

    def _read(self) -> None:
        while (job := self._arrived.get()) is not None:
            asked = job.question
            try:
                prepared = self._detector.prepare(
                    asked.sample, class_name=asked.class_name, with_pictures=asked.with_pictures
                )
            except Exception as error:  # of one sample: the others are answered
                job.answer.set_exception(error)
            else:
                job.prepared.append(prepared)
                self._readable.put(job)

    def _score_all(self) -> None:
        while (first := self._readable.get()) is not None:
            batch = [first, *self._others()]
            started = time.perf_counter()
            found: list[Prediction | Exception]
            try:
                samples = [job.prepared.pop() for job in batch]
                found = list(self._detector.score_prepared(samples, self.batching.batch_size))
            except Exception as error:  # out of memory, say: the next batch may be smaller
                found = [error] * len(batch)
            self._count(len(batch), time.perf_counter() - started)
            for job, said in zip(batch, found, strict=True):
                if isinstance(said, Exception):
                    job.answer.set_exception(NotScoredError(f"{type(said).__name__}: {said}"))
                else:
                    job.answer.set_result(said)

    def _others(self) -> Iterator[_Job]:
        """What shares a batch with its first sample. Nobody is waited for where nobody is likely to come: no other
        request is in the house, and the last batch, whose clients may be asking again, had one sample."""
        wanted = min(self.batching.batch_size, max(self._inside, self._last_size))
        deadline = time.monotonic() + self.batching.max_wait
        for taken in range(1, self.batching.batch_size):
            left = deadline - time.monotonic() if taken < wanted else 0.0
            try:
                job = self._readable.get(timeout=left) if left > 0 else self._readable.get_nowait()
            except Empty:
                return
            if job is None:
                self._readable.put(None)  # for the scorer's own loop
                return
            yield job

    def _count(self, size: int, seconds: float) -> None:
        self._last_size = size
        mean, newest = self._seconds_a_sample, seconds / size
        self._seconds_a_sample = mean + _NEW_WEIGHT * (newest - mean) if mean else newest
        self._on_batch(size, seconds)
