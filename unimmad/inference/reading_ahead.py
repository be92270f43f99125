"""Samples that are decoded in threads while others are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from unimmad.inference.inputs import InputSample
from unimmad.inference.reading import PreparedSample

READERS = 2
"""Threads that decode the next batch while one is scored."""

OnSkip = Callable[[str, ValueError], None]
"""Takes the name of a sample that can't be scored, and why."""


def started(
    samples: Iterable[InputSample], prepare: Callable[[InputSample], PreparedSample], pool: ThreadPoolExecutor
) -> Iterator[tuple[str, Future[PreparedSample]]]:
    """The name of each sample, and what it is being read to; an error of ``samples`` itself comes last, as a future."""
    try:
        for sample in samples:
            yield sample.name, pool.submit(prepare, sample)
    except Exception as error:
        failed: Future[PreparedSample] = Future()
        failed.set_exception(error)
        yield "", failed


def broken(reading: Sequence[tuple[str, Future[PreparedSample]]]) -> list[tuple[str, ValueError]]:
    """Name and error of each sample that can't be read."""
    found: list[tuple[str, ValueError]] = []
    read(reading, lambda name, error: found.append((name, error)))
    return found


def read(
    reading: Sequence[tuple[str, Future[PreparedSample]]], on_skip: OnSkip | None
) -> tuple[list[PreparedSample], Exception | None]:
    """The samples up to the first error that is not skipped, and that error."""
    prepared: list[PreparedSample] = []
    for name, future in reading:
        try:
            prepared.append(future.result())
        except Exception as error:
            if on_skip is None or not name or not isinstance(error, ValueError):
                return prepared, error
            on_skip(name, error)
    return prepared, None
