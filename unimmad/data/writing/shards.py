"""Datasets written as shards: plain WebDataset tars and the index beside them.

    TARGET/
      index.json
      train-000000.tar ...    every class's normal samples
      test-000000.tar ...     kept apart, so that training never opens them

A sample's members are ``DATASET/KEY.json``, ``DATASET/KEY.SLOT.SUFFIX`` for each modality and
``DATASET/KEY.mask.png``. The same input gives the same bytes, whatever
number of processes prepares it.
"""

from __future__ import annotations

import logging
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from tqdm import tqdm
from webdataset import TarWriter

from unimmad.data.image_facts import ImageFacts
from unimmad.data.index import INDEX_NAME, DatasetEntry, Index, Member, SampleEntry, ShardEntry, Split
from unimmad.data.layouts.source_set import SourceSample, SourceSet
from unimmad.data.reading.worker_pool import load_each
from unimmad.data.writing import packing
from unimmad.data.writing.findings import ModalityFindings
from unimmad.data.writing.packing import PackedSample, Work, pack
from unimmad.data.writing.replace_folder import replaced_folder
from unimmad.data.writing.shard_notes import FinishedShard, ShardNotes, sha256_of
from unimmad.data.writing.source_checks import check_sets
from unimmad.serialization.atomic_write import write_text_aside

logger = logging.getLogger(__name__)

SHARD_BYTES = 64 * 2**20
"""A shard is closed before the sample that would make it larger than this."""


def write_shards(
    sets: Sequence[SourceSet],
    target: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    allow_missing: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    workers: int = 0,
) -> Index:
    """Write datasets as one shard folder, whole or not at all.

    Every image and mask is decoded once and checked before it goes into a shard. After an interruption the same call
    goes on from the last finished shard, as far as the source files are the same (see ``shard_notes``).

    Args:
        sets: what to write; names must differ.
        target: the folder to make. It appears only when everything in it is written.
        shard_bytes: see ``SHARD_BYTES``.
        allow_missing: write samples that lack a modality, without it.
        overwrite: replace ``target`` if it is a shard folder.
        progress: show a progress bar where stderr is a terminal.
        workers: processes that read and check; 0 does it in this one. They need source files that can be pickled.

    Returns:
        The index written to ``target``.

    Raises:
        ValueError: a set that cannot be used (see ``source_checks``), an image that does not open, sizes that
            differ within a sample, or a target that exists, is being written by another process, or cannot be
            written.
    """
    check_sets(sets, allow_missing)
    with replaced_folder(target, overwrite) as working:
        writer = _Writer(working.new, ShardNotes(working.notes, working.new, shard_bytes), shard_bytes, workers)
        total = sum(len(found.samples) for found in sets)
        with tqdm(
            total=total, desc=f"writing {target.name}", unit=" samples", disable=None if progress else True
        ) as bar:
            try:
                index = writer.write(sets, bar)
            except OSError as error:
                reason = f"cannot write {target} ({error.strerror or error}); mend that or choose another --target"
                raise ValueError(f"{reason}{writer.after_error()}") from None
            except ValueError as error:
                raise ValueError(f"{error}{writer.after_error()}") from None
        write_text_aside(working.new / INDEX_NAME, index.model_dump_json(indent=1) + "\n")
    return index


class _Writer:
    """Fills the folder of one target."""

    def __init__(self, folder: Path, notes: ShardNotes, shard_bytes: int, workers: int) -> None:
        self.folder = folder
        self.notes = notes
        self.shard_bytes = shard_bytes
        self.workers = workers
        self.shards: list[ShardEntry] = []
        self.samples: list[SampleEntry] = []
        self.findings: dict[tuple[str, str], ModalityFindings] = {}
        """By dataset and modality."""
        self._noted: set[tuple[str, str]] = set()
        """Datasets and modalities of which a note was given."""

    def write(self, sets: Sequence[SourceSet], bar: tqdm) -> Index:
        """
        Raises:
            ValueError: as ``packing.pack``.
        """
        work = {split: _work_of_split(sets, split) for split in get_args(Split)}
        for samples in work.values():
            self.notes.look_at(samples)
        finished = {split: list(self._finished(split, samples)) for split, samples in work.items()}
        self.notes.keep_only({one.shard.name for of_split in finished.values() for one in of_split})
        self.findings = {
            (found.name, modality.name): ModalityFindings(found, modality)
            for found in sets
            for modality in found.entry.modalities
        }
        for split, samples in work.items():
            done = 0
            for one in finished[split]:
                for (found, sample), facts in zip(samples[done:], one.facts, strict=False):
                    self._take_in(found.name, sample, facts)
                self._add(one.shard, one.samples)
                bar.update(one.shard.samples)
                done += one.shard.samples
            self._write_rest(split, len(finished[split]), samples[done:], bar)
        return Index(
            source="; ".join(f"{found.name}: {found.description}" for found in sets),
            datasets={found.name: self._settled(found) for found in sets},
            shards=tuple(self.shards),
            samples=tuple(self.samples),
        )

    def after_error(self) -> str:
        """What to say of finished shards; less than one shard's worth of them is not kept."""
        try:
            sizes = self.notes.sizes()
            if sum(sizes) < self.shard_bytes:
                self.notes.keep_only(set())
                return ""
        except OSError:  # the disk that failed before; whoever writes there next finds what is left
            return ""
        return f" ({len(sizes)} finished shards are kept: the same command goes on from there)"

    def _finished(self, split: Split, work: Sequence[Work]) -> Iterator[FinishedShard]:
        done = number = 0
        while done < len(work) and (one := self.notes.finished(_shard_name(split, number), work[done:])):
            yield one
            done += one.shard.samples
            number += 1

    def _write_rest(self, split: Split, first: int, work: list[Work], bar: tqdm) -> None:
        """Pack ``work`` into shards that are numbered from ``first``."""
        done = 0
        packed = map(self._look_at, load_each(pack, work, self.workers, preload=packing.__name__))
        for number, samples in enumerate(_cut(packed, bar, self.shard_bytes), start=first):
            path = self.folder / _shard_name(split, number)
            entries = _write_shard(path, samples)
            shard = ShardEntry(name=path.name, bytes=path.stat().st_size, sha256=sha256_of(path), samples=len(samples))
            self.notes.add(shard, entries, work[done : done + len(samples) + 1], [packed.facts for packed in samples])
            self._add(shard, entries)
            done += len(samples)

    def _settled(self, found: SourceSet) -> DatasetEntry:
        """The entry with what its images told, which is said, too."""
        findings = [self.findings[found.name, modality.name] for modality in found.entry.modalities]
        for line in (line for one in findings for line in one.notices()):
            logger.warning("note: %s", line)
        return found.entry.model_copy(update={"modalities": tuple(one.settled() for one in findings)})

    def _take_in(self, dataset: str, sample: SourceSample, facts: Mapping[str, ImageFacts]) -> None:
        for modality, of_image in facts.items():
            self.findings[dataset, modality].add(sample.images[modality].name, sample.split, of_image)

    def _look_at(self, packed: PackedSample) -> PackedSample:
        """Take in its facts, and say the first note of each modality of a dataset."""
        self._take_in(packed.dataset, packed.sample, packed.facts)
        for modality, note in packed.notes.items():
            if (packed.dataset, modality) not in self._noted:
                self._noted.add((packed.dataset, modality))
                logger.warning("note: %s (and in others of %s, where they have such)", note, packed.dataset)
        return packed

    def _add(self, shard: ShardEntry, samples: Sequence[SampleEntry]) -> None:
        self.samples += [replace(sample, shard=len(self.shards)) for sample in samples]
        self.shards.append(shard)


def _shard_name(split: Split, number: int) -> str:
    return f"{split}-{number:06d}.tar"


def _work_of_split(sets: Sequence[SourceSet], split: Split) -> list[Work]:
    work: list[Work] = []
    for found in sets:
        chosen = [sample for sample in found.samples if sample.split == split]
        # Sorting is stable: a class keeps its order.
        work += [(found, sample) for sample in sorted(chosen, key=lambda sample: sample.class_name)]
    return work


def _cut(samples: Iterator[PackedSample], bar: tqdm, shard_bytes: int) -> Iterator[list[PackedSample]]:
    """Cut the samples, in their order, into shards."""
    shard: list[PackedSample] = []
    size = 0
    for packed in samples:
        if shard and size + packed.tar_bytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(packed)
        bar.update()
        size += packed.tar_bytes
    if shard:
        yield shard


def _write_shard(path: Path, samples: Sequence[PackedSample]) -> list[SampleEntry]:
    """Write one tar; its samples' entries, as of shard 0."""
    with (
        path.open("xb") as stream,
        TarWriter(stream, encoder=False, mtime=0, format="PAX_FORMAT") as writer,
    ):
        for packed in samples:
            writer.write({"__key__": packed.path, **packed.members})
    with tarfile.open(path) as tar:
        members = {
            info.name: Member(name=info.name, offset=info.offset_data, length=info.size) for info in tar.getmembers()
        }
    return [packed.entry(members, shard=0) for packed in samples]
