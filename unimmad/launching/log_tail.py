"""Reads what a growing log file gained."""

from __future__ import annotations

from pathlib import Path


class LogTail:
    """A log file, from its beginning on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_to = 0

    def news(self) -> str:
        """What came since the last call; nothing while the file is not there."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read_to)
                gained = file.read()
        except OSError:
            return ""
        self._read_to += len(gained)
        return gained.decode("utf-8", errors="replace")


def last_lines(path: Path, count: int) -> str:
    """The end of a log file, without empty lines; of a progress line that was redrawn, its last state."""
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in LogTail(path).news().split("\n")]
    return "\n".join([line for line in lines if line.strip()][-count:])
