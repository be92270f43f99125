"""A folder of shards fetched from URLs, bounded in size, shared by all processes of a node.

    CACHE/
      SHA256.tar                         a shard, named by its content, so that no two datasets can mix
      .SHA256.HOST.PID.RANDOM.part       one that is being fetched; has the shard's size from the start, which reserves
                                         its room
      .SHA256.lock                       held by the process that fetches it
      .lock                              held while room is made

The least recently read shards make room for new ones. A file is renamed into place only when its size and sha256
are those of the index. A shard that one process removes while another reads it stays readable there: POSIX keeps
open files.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from unimmad.data.index import ShardEntry
from unimmad.data.reading.download import FetchError, check_whole, fetch_blocks, with_retries
from unimmad.serialization.atomic_write import host_name, temporary_beside, time_of

DEFAULT_CACHE_GB = 50.0
GB = 10**9

_SHARD = re.compile(r"[0-9a-f]{64}\.tar")
_PART = re.compile(r"\.[0-9a-f]{64}(\..+)?\.part")
ABANDONED_SECONDS = 3600
"""A temporary file of that age has no writer any more."""

_NODES_OWN = ("SLURM_TMPDIR", "TMPDIR")
"""Variables that name a folder on the node's own disk, where a cluster's home is a network file system."""


def default_cache_folder() -> Path:
    """``unimmad-UID`` in ``$SLURM_TMPDIR`` or else ``$TMPDIR``; else ``$XDG_CACHE_HOME/unimmad``, ``~/.cache/unimmad``.

    A variable that names no folder counts as not set.
    """
    for name in _NODES_OWN:
        if (folder := os.environ.get(name)) and Path(folder).is_dir():
            return Path(folder) / f"unimmad-{os.getuid()}"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unimmad"


@dataclass(frozen=True)
class ShardCache:
    """The cache's place and bound; all state is in the folder. Picklable.

    Raises:
        ValueError: the bound is not positive.
    """

    folder: Path
    limit_bytes: int

    def __post_init__(self) -> None:
        if self.limit_bytes <= 0:
            raise ValueError(f"a shard cache of {self.limit_bytes} bytes holds nothing; set data.cache_gb above 0")

    @classmethod
    def of(cls, folder: str | Path | None = None, gigabytes: float = DEFAULT_CACHE_GB) -> ShardCache:
        """From settings; no or an empty ``folder`` is the default one."""
        return cls(Path(folder).expanduser() if folder else default_cache_folder(), int(gigabytes * GB))

    def open(self, shard: ShardEntry, url: str) -> io.FileIO:
        """The shard, open for reading; fetched from ``url`` where it is not in the folder.

        Raises:
            FetchError: it cannot be had, has another size or sha256 than ``shard`` says, is larger than the whole
                cache, or the folder can't be written.
        """
        try:
            file = self._opened(shard) or self._fetched(shard, url)
            os.utime(file.fileno())
        except OSError as error:
            raise FetchError(
                f"the shard cache {self.folder} can't be used ({error.strerror or error}); "
                "make room, or choose another folder with data.cache_folder"
            ) from None
        return file

    def _opened(self, shard: ShardEntry) -> io.FileIO | None:
        try:
            file = io.FileIO(self._path(shard))
        except FileNotFoundError:
            return None
        if os.fstat(file.fileno()).st_size == shard.bytes:
            return file
        file.close()
        return None

    def _fetched(self, shard: ShardEntry, url: str) -> io.FileIO:
        if shard.bytes > self.limit_bytes:
            raise FetchError(
                f"shard {shard.name} has {shard.bytes / GB:.2f} GB, the whole shard cache {self.limit_bytes / GB:.2f}; "
                "set data.cache_gb higher"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock(shard.sha256):
            # Another process may have fetched it while this one waited.
            if file := self._opened(shard):
                return file
            part = temporary_beside(self.folder / f"{shard.sha256}.part")
            try:
                self._reserve(part, shard.bytes)
                with_retries(url, lambda: _download(url, part, shard))
                # Opened before it has its name: from then on another process may remove it.
                file = io.FileIO(part)
                part.replace(self._path(shard))
            finally:
                part.unlink(missing_ok=True)
            return file

    def _reserve(self, part: Path, size: int) -> None:
        """Make room for ``part`` and give it its size."""
        with FileLock(self.folder / ".lock"):
            self._remove_abandoned_parts(part)
            # Parts first: one that becomes a shard meanwhile counts twice, not never.
            files = [*self._files(_PART), *self._files(_SHARD)]
            excess = size - self.limit_bytes + sum(status.st_size for _, status in files)
            shards = [(path, status) for path, status in files if _SHARD.fullmatch(path.name)]
            for path, status in sorted(shards, key=lambda item: item[1].st_mtime_ns):
                if excess <= 0:
                    break
                path.unlink()
                excess -= status.st_size
            with part.open("wb") as file:
                file.truncate(size)

    def _remove_abandoned_parts(self, ours: Path) -> None:
        """What a killed process left: a part has no writer when its lock is free or ours.

        Not every file system's locks reach other machines, so their parts go when nothing was written for long.
        """
        ours_sha256 = ours.name.split(".")[1]
        now = time_of(self.folder)
        for path, status in self._files(_PART):
            sha256, *writer = path.name.split(".")[1:-1]
            elsewhere = writer and ".".join(writer[:-2]) != host_name()
            if elsewhere and now - status.st_mtime < ABANDONED_SECONDS:
                continue
            if sha256 == ours_sha256:
                path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(Timeout), self._lock(sha256).acquire(timeout=0):
                path.unlink(missing_ok=True)

    def _files(self, name: re.Pattern[str]) -> list[tuple[Path, os.stat_result]]:
        found = []
        for path in self.folder.iterdir():
            if name.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # a part gets its final name at any moment
                    found.append((path, path.stat()))
        return found

    def _path(self, shard: ShardEntry) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _lock(self, sha256: str) -> FileLock:
        return FileLock(self.folder / f".{sha256}.lock")


def _download(url: str, part: Path, shard: ShardEntry) -> None:
    digest, size = hashlib.sha256(), 0
    with part.open("r+b") as file:
        for block in fetch_blocks(url):
            size += len(block)
            check_whole(url, size <= shard.bytes)
            digest.update(block)
            file.write(block)
    check_whole(url, size == shard.bytes and digest.hexdigest() == shard.sha256)
