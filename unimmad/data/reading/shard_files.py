"""The files of shard folders: their indexes, held against what lies there, and members of shards by their offset."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import Any

from unimmad.data.decode_limits import check_encoded
from unimmad.data.index import (
    INDEX_NAME,
    MAX_INDEX_BYTES,
    DatasetEntry,
    Index,
    Member,
    SampleEntry,
    ShardEntry,
    load_index,
    parse_index,
)
from unimmad.data.location import DataFolder, RemoteFolder, shown
from unimmad.data.reading.download import fetch
from unimmad.data.reading.shard_cache import ShardCache
from unimmad.data.writing.tar_headers import is_header_of
from unimmad.serialization.text import one_line

MAX_OPEN_SHARDS = 128
"""File handles a process keeps; the one opened first is closed beyond that."""


@dataclass(frozen=True)
class SampleRef:
    """Where to find one sample: its folder's position in the ``ShardSet``, and its entry in that index."""

    folder: int
    entry: SampleEntry

    @property
    def class_name(self) -> str:
        """``DATASET/CLASS``."""
        return f"{self.entry.dataset}/{self.entry.class_name}"


class ShardFiles:
    """Shard folders, whose members are read as they are encoded. Picklable; safe in loader workers of any kind."""

    def __init__(self, folders: Sequence[DataFolder], indexes: Sequence[Index], cache: ShardCache) -> None:
        """``indexes`` are the folders' own; ``cache`` keeps shards from URLs."""
        self.folders = tuple(folders)
        self.indexes = tuple(indexes)
        self.cache = cache
        self._open_shards: dict[tuple[int, int], io.FileIO] = {}

    def where(self, ref: SampleRef, member: Member) -> str:
        """For messages: shard and member."""
        return f"{self.shard_name(ref)}: {one_line(member.name)}"

    def shard_name(self, ref: SampleRef) -> str:
        """For messages: the path, or the URL."""
        folder, name = self.folders[ref.folder], self.shard_of(ref).name
        return os.path.join(folder, name) if isinstance(folder, Path) else shown(folder.file(name))

    def shard_of(self, ref: SampleRef) -> ShardEntry:
        """The shard that a sample lies in."""
        return self.indexes[ref.folder].shards[ref.entry.shard]

    def member_bytes(self, ref: SampleRef, member: Member) -> bytes:
        """One file of a sample, as it is encoded.

        Raises:
            ValueError: it is too large, can't be read, or is not where the index says.
        """
        where = self.where(ref, member)
        check_encoded(member.length, where)
        try:
            with self._shard_file(ref) as file:
                header = os.pread(file.fileno(), BLOCKSIZE, max(0, member.offset - BLOCKSIZE))
                data = os.pread(file.fileno(), member.length, member.offset)
        except OSError as error:
            raise ValueError(f"{where}: cannot be read ({error.strerror})") from None
        if len(data) != member.length:
            raise ValueError(f"{where}: the shard ends before it; write the shards again")
        if not is_header_of(header, member.name, member.length):
            raise ValueError(f"{where}: is not where the index says; was the shard replaced?")
        return data

    @contextlib.contextmanager
    def _shard_file(self, ref: SampleRef) -> Iterator[io.FileIO]:
        folder = self.folders[ref.folder]
        if isinstance(folder, Path):
            yield self._local_shard(folder, ref)
            return
        # Kept open, a shard would go on filling the disk after the cache has removed it.
        shard = self.shard_of(ref)
        with self.cache.open(shard, folder.file(shard.name)) as file:
            yield file

    def _local_shard(self, folder: Path, ref: SampleRef) -> io.FileIO:
        # pread has no position of its own, so handles that a forked worker inherits can be shared.
        key = (ref.folder, ref.entry.shard)
        if key not in self._open_shards:
            if len(self._open_shards) >= MAX_OPEN_SHARDS:
                self._open_shards.pop(next(iter(self._open_shards))).close()
            self._open_shards[key] = io.FileIO(folder / self.shard_of(ref).name)
        return self._open_shards[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open_shards": {}}


def checked_indexes(folders: Sequence[DataFolder]) -> list[Index]:
    """The index of each folder.

    Raises:
        ValueError: no or a broken index, a shard missing or cut short, one dataset in two folders.
    """
    indexes = [_index_of(folder) for folder in folders]
    check_names(folders, indexes)
    for folder, index in zip(folders, indexes, strict=True):
        if isinstance(folder, Path):
            _check_shards(folder, index)
    return indexes


def _index_of(folder: DataFolder) -> Index:
    if isinstance(folder, RemoteFolder):
        url = folder.file(INDEX_NAME)
        return parse_index(fetch(url, MAX_INDEX_BYTES), shown(url))
    return load_index(folder)


def check_names(folders: Sequence[DataFolder], indexes: Sequence[Index]) -> None:
    """Folders may share a dataset's name, as where a class came later: with the same modalities, and other classes and
    keys.

    Raises:
        ValueError: they share one otherwise.
    """
    places: dict[str, list[int]] = {}
    for number, index in enumerate(indexes):
        for name, entry in index.datasets.items():
            for earlier in places.setdefault(name, []):
                if why := _not_one_dataset(name, entry, indexes[earlier], index):
                    raise ValueError(
                        f"dataset {name} is in both {folders[earlier]} and {folders[number]}, {why}; give each folder "
                        "once, or write one of them again with another --name"
                    )
            places[name].append(number)


def _not_one_dataset(name: str, entry: DatasetEntry, earlier: Index, later: Index) -> str:
    """Why two folders' datasets of one name can't be joined; empty where they can."""
    if earlier.datasets[name].modalities != entry.modalities:
        return "with different modalities"
    both = [{(s.class_name, s.key) for s in index.samples if s.dataset == name} for index in (earlier, later)]
    for place, what in enumerate(("class", "key")):
        ours, theirs = ({pair[place] for pair in pairs} for pairs in both)
        if shared := sorted(ours & theirs):
            return f"with the {what} {one_line(shared[0])} in each"
    return ""


def _check_shards(folder: Path, index: Index) -> None:
    for shard in index.shards:
        path = folder / shard.name
        if not path.is_file():
            raise ValueError(f"shard {path} is missing; copy it again or write the shards again")
        size = path.stat().st_size
        if size != shard.bytes:
            raise ValueError(
                f"shard {path} is {size} bytes, but the index says {shard.bytes}: it was cut short or changed"
                "; copy it again or write the shards again"
            )
