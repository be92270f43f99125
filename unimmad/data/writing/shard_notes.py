"""What a writer of shards notes down, so that after an interruption the next one need not write them again.

One JSON file a finished shard: its entry, its samples' entries, and a fingerprint of what went into it. A shard is
used again only if the same samples come at the same place, their files have the same names, sizes and modification
times and are converted in the same way, and the tar has its sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from unimmad import __version__
from unimmad.data.image_facts import ImageFacts
from unimmad.data.index import MAX_INDEX_BYTES, SampleEntry, ShardEntry
from unimmad.data.layouts.source_set import SourceFile, SourceSample, SourceSet
from unimmad.data.writing.duplicates import Look
from unimmad.data.writing.packing import Work
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.documents import read_limited


class FinishedShard(BaseModel):
    """A shard in the working folder, complete."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str = ""
    """Empty until it is noted."""
    shard: ShardEntry
    samples: tuple[SampleEntry, ...]
    facts: tuple[dict[str, ImageFacts], ...]
    """Of each sample's images, by modality name."""
    looks: tuple[Look, ...]
    """Of each sample."""
    notes: tuple[dict[str, str], ...]
    """Of each sample: ``PackedSample.notes``."""
    skipped: tuple[str, ...] = ()
    """Of the samples that were left out between these: what is wrong with each."""

    @property
    def taken(self) -> int:
        """Samples of the source that it covers."""
        return len(self.samples) + len(self.skipped)


class ShardNotes:
    """The notes of one target.

    Args:
        notes: the folder they are in.
        shards: the folder of the tars.
        shard_bytes: where shards are cut; other than before, nothing is used again.
        rules: what else decides which samples are written, and how; likewise.
    """

    def __init__(self, notes: Path, shards: Path, shard_bytes: int, rules: Sequence[str] = ()) -> None:
        self.notes = notes
        self.shards = shards
        self.shard_bytes = shard_bytes
        self.rules = list(rules)
        self._seen: dict[tuple[str, str], bytes | None] = {}

    def look_at(self, work: Sequence[Work]) -> None:
        """Take down how the files of these samples are now: call before any is read.

        A file that is replaced later is then not taken for one that went into its shard.
        """
        for found, sample in work:
            self._seen[found.name, sample.key] = sample_fingerprint(found, sample)

    def add(self, finished: FinishedShard, work: Sequence[Work]) -> None:
        """Note a finished shard, filling in its fingerprint. ``work`` are the samples that it covers and, if any, the
        next one, whose size ended it; all were looked at before they were read.

        Nothing is noted where a sample is not a file: nobody could tell whether it changed.
        """
        fingerprint = self._fingerprint(work)
        if fingerprint is not None:
            noted = finished.model_copy(update={"fingerprint": fingerprint})
            write_text_aside(self._path(finished.shard.name), noted.model_dump_json())

    def change(self, shard: ShardEntry, samples: Sequence[SampleEntry]) -> None:
        """Note that a finished shard was written again, where it is noted at all."""
        path = self._path(shard.name)
        if path.is_file():
            noted = FinishedShard.model_validate_json(read_limited(path, MAX_INDEX_BYTES))
            changed = noted.model_copy(update={"shard": shard, "samples": tuple(samples)})
            write_text_aside(path, changed.model_dump_json())

    def finished(self, name: str, work: Sequence[Work]) -> FinishedShard | None:
        """The shard ``name``, if it is there and is what writing the first of ``work`` would give."""
        try:
            finished = FinishedShard.model_validate_json(read_limited(self._path(name), MAX_INDEX_BYTES))
        except (OSError, ValueError):
            return None
        path = self.shards / name
        same = finished.fingerprint == self._fingerprint(work[: finished.taken + 1]) and path.is_file()
        return finished if same and sha256_of(path) == finished.shard.sha256 else None

    def keep_only(self, names: set[str]) -> None:
        """Remove every other tar and note."""
        for folder in (self.notes, self.shards):
            for path in folder.iterdir():
                if path.name.removesuffix(".json") not in names:
                    path.unlink()

    def sizes(self) -> list[int]:
        """Bytes of each shard that is noted."""
        return [(self.shards / path.stem).stat().st_size for path in self.notes.iterdir()]

    def _path(self, name: str) -> Path:
        return self.notes / f"{name}.json"

    def _fingerprint(self, work: Sequence[Work]) -> str | None:
        digest = hashlib.sha256(json.dumps([__version__, self.shard_bytes, self.rules]).encode())
        for found, sample in work:
            of_sample = self._seen[found.name, sample.key]
            if of_sample is None:
                return None
            digest.update(of_sample)
        return digest.hexdigest()


def sample_fingerprint(found: SourceSet, sample: SourceSample) -> bytes | None:
    """Of what a sample is, and of its files as they are now; None where one is not a file."""
    files = [sample.images.get(modality.name) for modality in found.entry.modalities] + [sample.mask]
    states = [None if file is None else _state(file) for file in files]
    if any(state is None for state, file in zip(states, files, strict=True) if file is not None):
        return None
    names = [found.name, sample.key, sample.class_name, sample.split, sample.defect]
    parts = [
        *names,
        found.published,
        [modality.model_dump() for modality in found.entry.modalities],
        found.entry.field,
        states,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _state(file: SourceFile) -> list[Any] | None:
    """What tells whether a file's bytes are still the same; None where it is not a file."""
    read = file.read
    arguments = [*read.args, *read.keywords.values()] if isinstance(read, partial) else []
    try:
        files = [_status(path) for path in [Path(file.name), *_paths(arguments)]]
    except OSError:
        return None
    return [file.suffix, files, read.func.__qualname__ if isinstance(read, partial) else "", repr(arguments)]


def _status(path: Path) -> list[Any]:
    status = os.stat(path)
    return [os.path.abspath(path), status.st_size, status.st_mtime_ns]


def _paths(values: Sequence[Any]) -> Iterator[Path]:
    """Files that a conversion reads besides the one it is named after."""
    for value in values:
        if isinstance(value, Path):
            yield value
        elif isinstance(value, tuple | list):
            yield from _paths(value)
