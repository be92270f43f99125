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
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from tqdm import tqdm

from unimmad.data.image_facts import ImageFacts
from unimmad.data.index import (
    INDEX_NAME,
    DatasetEntry,
    DuplicateCounts,
    Index,
    SampleEntry,
    ShardEntry,
    Split,
)
from unimmad.data.layouts.source_set import SourceSample, SourceSet
from unimmad.data.reading.worker_pool import load_each
from unimmad.data.writing import packing
from unimmad.data.writing.duplicate_samples import find_duplicates
from unimmad.data.writing.duplicates import Look
from unimmad.data.writing.findings import ModalityFindings
from unimmad.data.writing.packing import MASK, Broken, PackedSample, Work, pack_or_say
from unimmad.data.writing.replace_folder import replaced_folder
from unimmad.data.writing.shard_notes import FinishedShard, ShardNotes, sha256_of
from unimmad.data.writing.source_checks import check_sets
from unimmad.data.writing.tars import write_settled, write_tar
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.text import ListedError, itemised, printable

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
    on_error: Literal["stop", "skip"] = "stop",
    allow_duplicates: bool = False,
    allow_odd_masks: bool = False,
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
        on_error: ``stop``: all samples are looked at, then what is wrong with any is raised in one list; ``skip``: such
            samples are left out, and logged.
        allow_duplicates: write test samples whose pixels are trained on.
        allow_odd_masks: write masks that cannot be meant as they are (see ``mask_checks``). Of benchmarks both are
            allowed, and logged.

    Returns:
        The index written to ``target``.

    Raises:
        ValueError: a set that cannot be used (see ``source_checks``), an image that does not open, sizes that
            differ within a sample, what ``allow_duplicates`` and ``allow_odd_masks`` would allow, or a target that
            exists, is being written by another process, or cannot be written.
        KeyboardInterrupt: says what is kept.
    """
    check_sets(sets, allow_missing)
    with replaced_folder(target, overwrite) as working:
        rules = ["odd masks"] if allow_odd_masks else []
        notes = ShardNotes(working.notes, working.new, shard_bytes, rules)
        pack = partial(pack_or_say, allow_odd_masks=allow_odd_masks)
        writer = _Writer(working.new, notes, pack, shard_bytes, workers, on_error == "skip")
        total = sum(len(found.samples) for found in sets)
        with tqdm(
            total=total, desc=f"writing {target.name}", unit=" samples", disable=None if progress else True
        ) as bar:
            try:
                index = writer.write(sets, bar, allow_duplicates)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(writer.after_error() or "; nothing is written") from None
            except OSError as error:
                reason = f"cannot write {target} ({error.strerror or error}); mend that or choose another --target"
                raise ValueError(f"{reason}{writer.after_error()}") from None
            except ValueError as error:
                raise type(error)(f"{error}{writer.after_error()}") from None
        write_text_aside(working.new / INDEX_NAME, index.model_dump_json(indent=1) + "\n")
    return index


class _Writer:
    """Fills the folder of one target."""

    def __init__(
        self,
        folder: Path,
        notes: ShardNotes,
        pack: partial[PackedSample | Broken],
        shard_bytes: int,
        workers: int,
        skip: bool,
    ) -> None:
        self.folder = folder
        self.notes = notes
        self.pack = pack
        self.shard_bytes = shard_bytes
        self.workers = workers
        self.skip = skip
        self.shards: list[ShardEntry] = []
        self.samples: list[SampleEntry] = []
        self.findings: dict[tuple[str, str], ModalityFindings] = {}
        """By dataset and modality."""
        self.looks: list[Look] = []
        """Of each sample."""
        self.broken: list[str] = []
        """What is wrong with samples that cannot be written."""
        self.mask_notes: list[str] = []
        self._noted: set[tuple[str, str]] = set()
        """Datasets and modalities of which a note was given."""

    def write(self, sets: Sequence[SourceSet], bar: tqdm, allow_duplicates: bool) -> Index:
        """
        Raises:
            ValueError: samples that cannot be written, or that are trained on and tested with.
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
                of_key = {(found.name, sample.key): sample for found, sample in samples[done : done + one.taken]}
                for entry, facts, notes in zip(one.samples, one.facts, one.notes, strict=True):
                    self._take_in(entry.dataset, of_key[entry.dataset, entry.key], facts)
                    self._say_notes(entry.dataset, notes)
                self._add(one)
                bar.update(one.taken)
                done += one.taken
            self._write_rest(split, len(finished[split]), samples[done:], bar)
        self._check_broken(sets)
        duplicates = self._duplicates(sets, allow_duplicates)
        datasets = {found.name: self._settled(found) for found in sets}
        self._write_settled({found.name for found in sets if datasets[found.name] != found.entry}, datasets)
        return Index(
            source="; ".join(f"{found.name}: {found.description}" for found in sets),
            datasets=datasets,
            shards=tuple(self.shards),
            samples=tuple(self.samples),
            duplicates=duplicates,
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

    def _check_broken(self, sets: Sequence[SourceSet]) -> None:
        if self.mask_notes:
            logger.warning("note: %s", itemised("masks that are not as others", self.mask_notes))
        if not self.broken:
            return
        total = sum(len(found.samples) for found in sets)
        listed = itemised(f"{len(self.broken)} of {total} samples cannot be written", self.broken)
        if not self.skip and len(self.broken) == 1:
            raise ValueError(f"{self.broken[0]}, or leave it out by --on-error skip")
        if not self.skip:
            raise ListedError(f"{listed}\nMend or remove these, or leave them out by --on-error skip")
        logger.warning("note: left out: %s", listed)
        trained = {(one.dataset, one.class_name) for one in self.samples if one.split == "train"}
        for found in sets:
            for sample in found.samples:
                if (found.name, sample.class_name) not in trained:
                    raise ValueError(f"{found.name}/{sample.class_name}: none of its training samples can be written")

    def _duplicates(self, sets: Sequence[SourceSet], allowed: bool) -> DuplicateCounts:
        """
        Raises:
            ValueError: samples that are trained on and tested with.
        """
        file_of = {
            (found.name, sample.key): next(iter(sample.images.values())).name
            for found in sets
            for sample in found.samples
        }
        files = [file_of[sample.dataset, sample.key] for sample in self.samples]
        own = frozenset() if allowed else frozenset(found.name for found in sets if not found.published)
        duplicates = find_duplicates(self.samples, self.looks, files, own)
        if duplicates.leak:
            raise ListedError(duplicates.leak)
        for note in duplicates.notes:
            logger.warning("note: %s", note)
        return duplicates.counts

    def _finished(self, split: Split, work: Sequence[Work]) -> Iterator[FinishedShard]:
        done = number = 0
        while done < len(work) and (one := self.notes.finished(_shard_name(split, number), work[done:])):
            if one.skipped and not self.skip:
                return
            yield one
            done += one.taken
            number += 1

    def _write_rest(self, split: Split, first: int, work: list[Work], bar: tqdm) -> None:
        """Pack ``work`` into shards that are numbered from ``first``; after a broken sample all others are only looked
        at, unless it is to be skipped."""
        done = 0
        packed = load_each(self.pack, work, self.workers, preload=packing.__name__)
        for number, items in enumerate(_cut(packed, bar, self.shard_bytes), start=first):
            judged = [self._look_at(item) if isinstance(item, PackedSample) else item for item in items]
            samples = [item for item in judged if isinstance(item, PackedSample)]
            broken = [item.message for item in judged if isinstance(item, Broken)]
            if samples and (self.skip or not (broken or self.broken)):
                path = self.folder / _shard_name(split, number)
                entries = _write_shard(path, samples)
                size, digest = path.stat().st_size, sha256_of(path)
                finished = FinishedShard(
                    shard=ShardEntry(name=path.name, bytes=size, sha256=digest, samples=len(samples)),
                    samples=tuple(entries),
                    facts=tuple(one.facts for one in samples),
                    looks=tuple(one.look for one in samples),
                    notes=tuple(one.notes for one in samples),
                    skipped=tuple(broken),
                )
                self.notes.add(finished, work[done : done + len(items) + 1])
                self._add(finished)
            else:
                self.broken += broken
            done += len(items)

    def _settled(self, found: SourceSet) -> DatasetEntry:
        """The entry with what its images told, which is said, too."""
        findings = [self.findings[found.name, modality.name] for modality in found.entry.modalities]
        for line in (line for one in findings for line in one.notices()):
            logger.warning("note: %s", line)
        return found.entry.model_copy(update={"modalities": tuple(one.settled() for one in findings)})

    def _write_settled(self, changed: Set[str], datasets: Mapping[str, DatasetEntry]) -> None:
        """Have each sample of the datasets whose images told something say that, too, as the index does."""
        of_shard: dict[int, list[int]] = defaultdict(list)
        for place, sample in enumerate(self.samples):
            of_shard[sample.shard].append(place)
        for number, places in of_shard.items():
            samples = [self.samples[place] for place in places]
            if changed.isdisjoint(sample.dataset for sample in samples):
                continue
            shard, samples = write_settled(
                self.folder / self.shards[number].name, self.shards[number], samples, datasets
            )
            self.notes.change(shard, [replace(sample, shard=0) for sample in samples])
            self.shards[number] = shard
            for place, sample in zip(places, samples, strict=True):
                self.samples[place] = sample

    def _take_in(self, dataset: str, sample: SourceSample, facts: Mapping[str, ImageFacts]) -> None:
        for modality, of_image in facts.items():
            self.findings[dataset, modality].add(sample.images[modality].name, sample.split, of_image)

    def _look_at(self, packed: PackedSample) -> PackedSample | Broken:
        """Take in its facts, and say its notes; broken where an image does not go with those before it."""
        try:
            for modality, of_image in packed.facts.items():
                self.findings[packed.dataset, modality].check(packed.sample.images[modality].name, of_image)
        except ValueError as error:
            return Broken(printable(str(error)))
        self._take_in(packed.dataset, packed.sample, packed.facts)
        self._say_notes(packed.dataset, packed.notes)
        return packed

    def _say_notes(self, dataset: str, notes: Mapping[str, str]) -> None:
        """The first of each modality of a dataset; of masks all, at the end."""
        for modality, note in notes.items():
            if modality == MASK:
                self.mask_notes.append(note)
            elif (dataset, modality) not in self._noted:
                self._noted.add((dataset, modality))
                logger.warning("note: %s (and in others of %s, where they have such)", note, dataset)

    def _add(self, finished: FinishedShard) -> None:
        self.samples += [replace(sample, shard=len(self.shards)) for sample in finished.samples]
        self.looks += finished.looks
        self.broken += finished.skipped
        self.shards.append(finished.shard)


def _shard_name(split: Split, number: int) -> str:
    return f"{split}-{number:06d}.tar"


def _work_of_split(sets: Sequence[SourceSet], split: Split) -> list[Work]:
    work: list[Work] = []
    for found in sets:
        chosen = [sample for sample in found.samples if sample.split == split]
        # Sorting is stable: a class keeps its order.
        work += [(found, sample) for sample in sorted(chosen, key=lambda sample: sample.class_name)]
    return work


def _cut(items: Iterator[PackedSample | Broken], bar: tqdm, shard_bytes: int) -> Iterator[list[PackedSample | Broken]]:
    """Cut the samples, in their order, into shards."""
    shard: list[PackedSample | Broken] = []
    size = 0
    for item in items:
        if size and size + item.tar_bytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(item)
        bar.update()
        size += item.tar_bytes
    if shard:
        yield shard


def _write_shard(path: Path, samples: Sequence[PackedSample]) -> list[SampleEntry]:
    """Write one tar; its samples' entries, as of shard 0."""
    members = write_tar(path, ((packed.path, packed.members) for packed in samples))
    return [packed.entry(members, shard=0) for packed in samples]
