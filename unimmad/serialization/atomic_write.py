"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_STEM_BYTES = 100
"""Of the stem in a temporary name: file systems allow 255 bytes in all."""
_OLD_S = 3600


def temporary_beside(path: Path) -> Path:
    """A hidden name in the folder of ``path`` that no other process takes, of this machine or another.

    ``.STEM.HOST.PID.RANDOM.SUFFIX``: it keeps the suffix of ``path``, so that writers which go by the suffix work, and
    the beginning of its stem, by which leftovers are found.
    """
    return path.with_name(f".{_stem(path)}.{host_name()}.{os.getpid()}.{secrets.token_hex(4)}{path.suffix}")


def remove_leftovers(path: Path) -> None:
    """Remove what processes that were killed as they wrote ``path`` left beside it more than an hour ago."""
    left = re.compile(rf"\.{re.escape(_stem(path))}\..+\.\d+\.[0-9a-f]{{8}}{re.escape(path.suffix)}")
    for found in path.parent.iterdir() if path.parent.is_dir() else ():
        if left.fullmatch(found.name):
            with suppress(OSError):
                if time_of(path.parent) - found.stat().st_mtime > _OLD_S:
                    found.unlink()


def _stem(path: Path) -> str:
    return os.fsencode(path.stem)[:_STEM_BYTES].decode(errors="ignore")


def host_name() -> str:
    """This machine's name without its domain; in a SLURM job the node's."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname().partition(".")[0] or "localhost"


def time_of(folder: Path) -> float:
    """Now, by the clock of the file system that ``folder`` lies in: seconds since 1970.

    What ages of files are counted from. A machine's own clock may differ from it, and be set at any moment.

    Raises:
        OSError: nothing can be written there.
    """
    probe = temporary_beside(folder / "clock")
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file in the folder of ``path``, then rename it; makes the folder.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    try:
        replace_whole(path, write)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write {path}: {reason}; choose another output folder") from None


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """:func:`write_aside` for files that are not the user's output.

    Raises:
        OSError: as it came.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    finally:
        if temporary.parent.is_dir():
            temporary.unlink(missing_ok=True)


def write_text_aside(path: Path, text: str) -> None:
    """:func:`write_aside` for text, as UTF-8 with the line ends it has."""
    write_aside(path, lambda temporary: temporary.write_bytes(text.encode()))
