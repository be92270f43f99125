"""A folder that appears whole or not at all, and whose making can be continued after an interruption.

.TARGET.writing/    beside the target, as long as it is not complete
  new/              becomes the target
  notes/            what a continuation needs
  old/              the target that is being replaced, for an instant
  lock
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from unimmad.data.index import INDEX_NAME


@dataclass(frozen=True)
class WorkingFolder:
    """Where a target is prepared."""

    root: Path

    @property
    def new(self) -> Path:
        """What it becomes; holds what an interrupted writer left."""
        return self.root / "new"

    @property
    def notes(self) -> Path:
        """For the writer's own use."""
        return self.root / "notes"

    @property
    def old(self) -> Path:
        return self.root / "old"


@contextmanager
def replaced_folder(target: Path, overwrite: bool) -> Iterator[WorkingFolder]:
    """Give a folder beside ``target`` to write into; at the end its ``new`` becomes ``target``.

    After an error or an interruption ``target`` is as it was; the working folder stays while its ``notes`` hold
    anything, and the next writer of the same target finds it.

    Raises:
        ValueError: ``target`` exists and is not empty, unless it is a shard folder and ``overwrite`` is set; or
            another process is writing it.
    """
    target = target.absolute()
    working = WorkingFolder(target.with_name(f".{target.name}.writing"))
    _check_target(target, overwrite)
    working.root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(working.root / "lock", timeout=0):
            _recover(working, target)
            try:
                yield working
                _swap(working, target)
                shutil.rmtree(working.notes)
            finally:
                if not working.notes.is_dir() or not any(working.notes.iterdir()):
                    shutil.rmtree(working.root, ignore_errors=True)  # an error of before must stay the one told
    except Timeout:
        raise ValueError(f"target {target} is being written by another process; wait for it to end") from None


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not (target / INDEX_NAME).is_file():
        raise ValueError(f"target {target} exists and is not a shard folder; choose another --target")
    if not overwrite:
        raise ValueError(f"target {target} is a shard folder already; add --overwrite, or choose another --target")


def _recover(working: WorkingFolder, target: Path) -> None:
    """Undo a swap that was cut in half, and make what is not there yet."""
    if working.old.exists():
        if target.exists():
            shutil.rmtree(working.old)
        else:
            working.old.rename(target)
    working.new.mkdir(exist_ok=True)
    working.notes.mkdir(exist_ok=True)


def _swap(working: WorkingFolder, target: Path) -> None:
    existed = target.exists()
    if existed:
        target.rename(working.old)
    try:
        working.new.rename(target)
    except OSError:
        if existed:
            working.old.rename(target)
        raise
