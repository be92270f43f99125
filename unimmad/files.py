"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file in the folder of ``path``, then rename it; makes the folder.

    The temporary file keeps the suffix of ``path``, so that writers which go by the suffix work.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    try:
        replace_whole(path, write)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"cannot write {path}: {reason}; choose another output folder") from None


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """:func:`write_aside` for files that are no output of the user's.

    Raises:
        OSError: as it came.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
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
