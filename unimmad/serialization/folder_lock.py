"""A lock file, so that one process at a time writes into a folder, on any file system that hosts share.

It is made exclusively, says who holds it, and is touched by its holder every ``BEAT_S``. It is stale where the holder's
machine sees that process gone, and where any other machine sees that it was not touched for ``STALE_S``.

Who finds LOCK stale makes LOCK.TOKEN, by the same rules (TOKEN is the stale holder's), looks whether LOCK is still that
one, and renames its own file over it. So of many that take it over one succeeds, and one that dies on the way is taken
over itself. (filelock's leases need a file system that swaps two names in one step; NFS does not.)
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from unimmad.serialization.lock_holder import STALE_S, Found, Holder, find_lock, token_at, token_of

logger = logging.getLogger(__name__)

BEAT_S = 10.0
POLL_S = 1.0


class FolderLock:
    """Held from ``take`` to the end of the ``with`` block; where nothing is taken, it does nothing.

    Args:
        name: of the file.
        activity: what its holder does, for messages: ``training``.
        otherwise: what to do beside waiting for the end of that.
    """

    def __init__(self, name: str, activity: str, otherwise: str = "choose another --output-dir") -> None:
        self.name = name
        self.activity = activity
        self.otherwise = otherwise
        self._path: Path | None = None
        """Where it is held."""
        self._holder = Holder.this_process()
        self._made_folder = False
        self._lost = False
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._release()

    def take(self, folder: Path) -> bool:
        """Hold the lock of ``folder``, which is made where it is not there.

        A holder of the same job is what was there before a restart: it is waited for until it is gone or stale.

        Returns:
            Whether it was waited for.

        Raises:
            ValueError: another process holds it, or the folder can't be written to.
        """
        path = folder / self.name
        try:
            self._made_folder = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            waited = self._wait(path)
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror or error}; choose another output folder") from None
        self._path = path
        self._heart.start()
        return waited

    def check(self) -> None:
        """
        Raises:
            ValueError: another process took the lock over, since this one was not heard of for too long.
        """
        if self._lost:
            raise ValueError(
                f"{self._path} was taken over by another process: this {self.activity} "
                f"had not been heard of for {STALE_S:.0f} s, and stops without writing anything more"
            )

    def _wait(self, path: Path) -> bool:
        """Whether there was a holder to wait for."""
        give_up: float | None = None
        while (found := self._try(path)) is not None:
            own_job = found.holder is not None and found.holder.job == self._holder.job != ""
            if not own_job or (give_up is not None and time.monotonic() > give_up):
                raise ValueError(
                    f"{path.parent} is in use: {path.name} is held by {found}; wait for the end of that "
                    f"{self.activity}, or {self.otherwise}"
                )
            if give_up is None:
                give_up = time.monotonic() + STALE_S + 2 * BEAT_S
                logger.warning("%s is held by %s, of this job's last start: waiting until it is gone", path, found)
            time.sleep(POLL_S)
        return give_up is not None

    def _try(self, path: Path) -> Found | None:
        """Make ``path``, or take it over; else the one that is in the way."""
        while True:
            with suppress(FileExistsError):
                self._write(path)
                return None
            found = find_lock(path)
            if found is None:
                continue
            if found.holder is None and abs(found.silent_s) < POLL_S:
                time.sleep(POLL_S / 10)  # it is being written
                continue
            if not found.is_stale:
                return found
            turn = path.with_name(f"{path.name}.{token_of(found.holder)}")
            if (other := self._try(turn)) is not None:
                return other
            if token_at(path) == token_of(found.holder):
                turn.replace(path)
                logger.info("%s was left by %s, and is taken over", path, found)
                return None
            turn.unlink()

    def _write(self, path: Path) -> None:
        with path.open("x", encoding="utf-8") as file:
            try:
                file.write(self._holder.model_dump_json())
                file.flush()
            except OSError:
                path.unlink()
                raise

    def _beat(self) -> None:
        assert self._path is not None
        while not self._released.wait(BEAT_S):
            with suppress(OSError):  # of a file system that is away for a moment
                token = token_at(self._path)
                if token is None:
                    self._write(self._path)  # somebody removed it by hand
                elif token == self._holder.token:
                    os.utime(self._path)
                else:
                    self._lost = True
                    return

    def _release(self) -> None:
        if self._path is None:
            return
        self._released.set()
        self._heart.join(BEAT_S)
        if self._lost:
            return
        # Who has its turn already takes the lock over.
        turn = self._path.with_name(f"{self._path.name}.{self._holder.token}")
        if self._try(turn) is None:
            if token_at(self._path) == self._holder.token:
                self._path.unlink()
            turn.unlink()
        if self._made_folder:
            self._path.parent.rmdir()  # fails, as it should, unless nothing was written
