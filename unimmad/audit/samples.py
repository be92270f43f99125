"""What is audited: sources as they lie on disk, or shards, as samples of one kind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

from unimmad.audit.settling import settled_set
from unimmad.data.index import DatasetEntry, Member, SampleEntry, Split
from unimmad.data.layouts.source_set import SourceFile, SourceSample, SourceSet
from unimmad.data.location import DataFolder
from unimmad.data.reading.shard_files import SampleRef
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.writing.shard_notes import sample_fingerprint


@dataclass(frozen=True)
class AuditSample:
    """One sample, wherever it lies; picklable."""

    dataset: str
    entry: DatasetEntry
    """Of its dataset, as shards have it."""
    given: DatasetEntry
    """The same before values were looked at: what each image has to fit by itself."""
    sample: SourceSample
    fingerprint: str | None
    """Changes with what the sample is and with its files; None where nobody could tell."""

    @property
    def class_name(self) -> str:
        """``DATASET/CLASS``."""
        return f"{self.dataset}/{self.sample.class_name}"

    @property
    def files(self) -> dict[str, SourceFile]:
        """Its images in slot order, by modality name."""
        images = self.sample.images
        ordered = sorted(self.entry.modalities, key=lambda modality: modality.slot)
        return {modality.name: images[modality.name] for modality in ordered if modality.name in images}


def samples_of_sets(sets: Sequence[SourceSet], workers: int = 0, show_progress: bool = True) -> list[AuditSample]:
    """All samples of sources, read as their shards would be, and in the order that these would have.

    Args:
        sets: the sources.
        workers: processes that read those values which say how others are read; 0: this one.
        show_progress: show a bar where stderr is a terminal.
    """
    settled = [settled_set(found, workers, show_progress) for found in sets]
    return [
        AuditSample(
            found.name,
            found.entry,
            given.entry,
            sample,
            None if (digest := sample_fingerprint(found, sample)) is None else digest.hex(),
        )
        for split in get_args(Split)
        for given, found in zip(sets, settled, strict=True)
        for sample in sorted(found.samples, key=lambda sample: sample.class_name)
        if sample.split == split
    ]


def samples_of_shards(folders: Sequence[DataFolder]) -> list[AuditSample]:
    """All samples of shard folders, in the order of their indexes.

    Raises:
        ValueError: as ``ShardSet.open``.
    """
    shards = ShardSet.open(folders)
    return [
        _of_entry(shards, SampleRef(number, entry))
        for number, index in enumerate(shards.indexes)
        for entry in index.samples
    ]


def _of_entry(shards: ShardSet, ref: SampleRef) -> AuditSample:
    entry = ref.entry
    images = {name: _member(shards, ref, member) for name, member in entry.images.items()}
    mask = None if entry.mask is None else _member(shards, ref, entry.mask)
    sample = SourceSample(entry.key, entry.class_name, entry.split, entry.defect, images, mask)
    found = shards.datasets[entry.dataset]
    shard = shards.indexes[ref.folder].shards[entry.shard]
    return AuditSample(entry.dataset, found, found, sample, _fingerprint(shard.sha256, found, entry))


def _member(shards: ShardSet, ref: SampleRef, member: Member) -> SourceFile:
    suffix = f".{member.name.rpartition('.')[2]}"
    return SourceFile(member.name, suffix, partial(shards.member_bytes, ref, member))


def _fingerprint(shard_sha256: str, found: DatasetEntry, entry: SampleEntry) -> str:
    """Of a sample in a shard, whose sum tells of every byte in it."""
    modalities = [modality.model_dump() for modality in found.modalities]
    place = repr(replace(entry, shard=0))
    return hashlib.sha256(json.dumps([shard_sha256, modalities, place]).encode()).hexdigest()
