"""A folder that appears whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unimmad.data.index import INDEX_NAME


@contextmanager
def replaced_folder(target: Path, overwrite: bool) -> Iterator[Path]:
    """Give an empty folder beside ``target`` to write into; at the end it becomes ``target``.

    After an error, or an interruption, nothing of it is left and ``target`` is as it was.

    Raises:
        ValueError: ``target`` exists and is not empty, unless it is a shard folder and ``overwrite`` is set.
    """
    target = target.absolute()
    _check_target(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        new = aside / "new"
        new.mkdir()  # mkdtemp's own mode would keep other users out
        yield new
        _swap(new, target, aside / "old")
    finally:
        shutil.rmtree(aside)


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / INDEX_NAME).is_file():
        raise ValueError(f"target {target} exists and is no shard folder; choose another --target")
    if not overwrite:
        raise ValueError(f"target {target} is a shard folder already; add --overwrite, or choose another --target")


def _swap(new: Path, target: Path, old: Path) -> None:
    existed = target.exists()
    if existed:
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if existed:
            old.rename(target)
        raise
