"""Predictions as they lie in JSON lines: read, held against the calibration that is watched, and followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import Field, ValidationError

from unimmad.monitoring.monitor import Seen
from unimmad.serialization.text import one_line
from unimmad.serialization.validation import Entry, first_problem

LONGEST_LINE = 2**20
"""Bytes of one prediction."""
LARGEST = 1e300
"""Numbers beyond it, of either sign, can't be calculated with."""
_KNOWN_BY = 256
"""Bytes before the place reached, by which a file is known to be the same still."""


class BrokenLineError(ValueError):
    """A line without a prediction."""


class _Measured(Entry):
    reference: str
    time: str = ""
    images: dict[str, dict[str, Annotated[float, Field(ge=-LARGEST, le=LARGEST)]]] = Field(default_factory=dict)


class _Line(Entry):
    name: str
    class_name: Annotated[str | None, Field(alias="class")]
    modalities: tuple[str, ...]
    score: Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
    anomalous: bool | None
    monitor: _Measured | None = None


def parse_line(line: bytes, where: str, reference: str) -> Seen:
    """What a monitor needs of one line; ``reference`` is the digest of the calibration that it watches by.

    Raises:
        BrokenLineError: it is not a prediction.
        ValueError: it is one of another checkpoint or calibration, or was made without what a monitor needs.
    """
    try:
        found = _Line.model_validate_json(line)
    except ValidationError as error:
        raise BrokenLineError(f"{where}: not a prediction ({first_problem(error)})") from None
    if found.monitor is None:
        raise ValueError(
            f"{where}: it has nothing to compare with calibration; predict again with a checkpoint that this version "
            "calibrated, and without --no-monitor"
        )
    if found.monitor.reference != reference:
        raise ValueError(
            f"{where}: a prediction of another checkpoint, or from before it was calibrated again: its calibration is "
            f"{one_line(found.monitor.reference, 40)}, the checkpoint's is {reference}; name that checkpoint with "
            "--checkpoint, or predict again"
        )
    return Seen(
        found.name,
        found.monitor.time,
        found.class_name,
        found.modalities,
        found.score,
        found.anomalous,
        found.monitor.images,
    )


class FollowedFile:
    """A file of lines that may grow, be cut to nothing, be renamed and begun again, or not be there yet.

    A new file under the name is read from its beginning, once what was left in the old one is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream: BinaryIO | None = None
        self._place = self._number = 0
        self._rest = self._end = b""

    def lines(self, last: bool = False) -> Iterator[tuple[str, bytes]]:
        """Where each line is, for messages, and the line, of all that are whole and were not given yet.

        Args:
            last: the file will not grow: what follows the last line's end is a line, too.

        Raises:
            OSError: it can't be read, as when it is not there, which only matters where it must be.
            BrokenLineError: a line is too long.
        """
        yield from self._grown()
        if self._replaced():
            self.close()
            yield from self._grown()
        if last and self._rest.strip():
            yield self._next(self._rest)
            self._rest = b""

    def close(self) -> None:
        """Begin again with what lies there under the name."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        self._begin_again()

    def _begin_again(self) -> None:
        self._place, self._number = 0, 0
        self._rest = self._end = b""

    def _grown(self) -> Iterator[tuple[str, bytes]]:
        if self._stream is None:
            self._stream = self.path.open("rb")
        if os.pread(self._stream.fileno(), len(self._end), self._place - len(self._end)) != self._end:
            self._stream.seek(0)  # it was cut, and may have grown beyond this place since
            self._begin_again()
        while block := self._stream.read(LONGEST_LINE):
            self._place += len(block)
            self._end = (self._end + block)[-_KNOWN_BY:]
            *lines, self._rest = (self._rest + block).split(b"\n")
            for line in lines:
                yield self._next(line)
            if len(self._rest) > LONGEST_LINE:
                self._rest = b""
                raise BrokenLineError(f"{self.path} line {self._number + 1}: longer than {LONGEST_LINE} bytes")

    def _next(self, line: bytes) -> tuple[str, bytes]:
        self._number += 1
        return f"{self.path} line {self._number}", line

    def _replaced(self) -> bool:
        """Whether another file lies under the name by now; between a renaming and a new file there is none."""
        with suppress(FileNotFoundError):
            found = self.path.stat()
            assert self._stream is not None
            return not os.path.samestat(found, os.fstat(self._stream.fileno()))
        return False
