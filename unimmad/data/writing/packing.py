"""One sample of a source made ready for a shard: read, decoded once to be checked, and described."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unimmad.data.decode import check_same_size, decode
from unimmad.data.image_facts import ImageFacts, facts_of
from unimmad.data.index import Member, SampleEntry
from unimmad.data.layouts.encode import png_bytes
from unimmad.data.layouts.source_set import SourceFile, SourceSample, SourceSet
from unimmad.data.writing.descriptions import DESCRIPTION, describe
from unimmad.data.writing.duplicates import Look, look_of
from unimmad.data.writing.mask_checks import read_mask
from unimmad.serialization.text import printable, utf8_name

MASK = "mask"
"""By what name notes on masks go, beside those of modalities."""

TAR_BLOCK = 512

Work = tuple[SourceSet, SourceSample]
"""One sample to write, and the set it is of."""


@dataclass(frozen=True)
class PackedSample:
    """One sample as it goes into a tar."""

    dataset: str
    sample: SourceSample
    members: dict[str, bytes]
    """By what follows ``DATASET/KEY.``"""
    slot_suffixes: dict[str, str]
    """By modality name: ``SLOT.SUFFIX``."""
    look: Look
    """What tells whether another sample shows the same."""
    source: str | None = None
    """See ``SampleEntry.source``."""
    notes: dict[str, str] = field(default_factory=dict)
    """By modality name, or ``MASK``: what one should know of it."""
    facts: dict[str, ImageFacts] = field(default_factory=dict)
    """By modality name."""

    @property
    def tar_bytes(self) -> int:
        return sum(TAR_BLOCK + -(-len(data) // TAR_BLOCK) * TAR_BLOCK for data in self.members.values())

    @property
    def path(self) -> str:
        return f"{self.dataset}/{self.sample.key}"

    def entry(self, members: dict[str, Member], shard: int) -> SampleEntry:
        """Its entry in the index; ``members`` are those of its shard, by name."""
        sample = self.sample
        return SampleEntry(
            key=sample.key,
            dataset=self.dataset,
            class_name=sample.class_name,
            split=sample.split,
            defect=sample.defect,
            anomalous=sample.anomalous,
            shard=shard,
            images={name: members[f"{self.path}.{suffix}"] for name, suffix in self.slot_suffixes.items()},
            mask=members.get(f"{self.path}.mask.png"),
            source=self.source,
        )


@dataclass(frozen=True)
class Broken:
    """A sample that cannot be written."""

    message: str
    """Names the file, and says what is wrong and what to do."""
    tar_bytes: int = 0


def pack_or_say(work: Work, allow_odd_masks: bool = False) -> PackedSample | Broken:
    """:func:`pack`, with its error as a value: the samples behind a broken file are looked at, too."""
    try:
        return pack(work, allow_odd_masks)
    except ValueError as error:
        return Broken(printable(str(error)))


def pack(work: Work, allow_odd_masks: bool = False) -> PackedSample:
    """
    Args:
        work: the sample.
        allow_odd_masks: note a mask that cannot be meant so (see ``mask_checks``), as is done of benchmarks.

    Raises:
        ValueError: an image or the mask cannot be read, does not open, or does not fit the others.
    """
    found, sample = work
    members: dict[str, bytes] = {}
    slot_suffixes: dict[str, str] = {}
    notes: dict[str, str] = {}
    facts: dict[str, ImageFacts] = {}
    arrays: dict[str, NDArray] = {}
    first: tuple[str, tuple[int, ...]] | None = None
    for modality in found.entry.modalities:
        file = sample.images.get(modality.name)
        if file is None:
            continue
        data = _read(file)
        decoded = decode(data, file.suffix, file.name)
        facts[modality.name], note = facts_of(decoded, modality, file.name)
        if note:
            notes[modality.name] = f"{file.name}: {note}"
        first = first or (decoded.called(file.name), decoded.pixels.shape)
        check_same_size(decoded.called(file.name), decoded.pixels.shape, *first)
        arrays[modality.name] = decoded.pixels
        slot_suffixes[modality.name] = f"{modality.slot}{file.suffix}"
        members[slot_suffixes[modality.name]] = data
    assert first is not None, "source_checks refuses a sample without an image"
    if sample.mask is not None:
        members["mask.png"], notes[MASK] = _pack_mask(
            sample.mask, *first, sample.anomalous, strict=not (found.published or allow_odd_masks)
        )
    members[DESCRIPTION] = describe(found.name, found.entry, sample)
    noted = {name: note for name, note in notes.items() if note}
    source = _source(found, next(iter(sample.images.values())).name)
    return PackedSample(found.name, sample, members, slot_suffixes, look_of(arrays), source, noted, facts)


def _source(found: SourceSet, file: str) -> str | None:
    """The file's place in its dataset's folder, or its name where it lies elsewhere; None where it is not a file."""
    if found.root is None:
        return None
    relative = os.path.relpath(os.path.abspath(file), os.path.abspath(found.root))
    return utf8_name(os.path.basename(file) if relative.startswith(os.pardir) else relative)


def _read(file: SourceFile) -> bytes:
    try:
        return file.read()
    except OSError as error:
        raise ValueError(f"{file.name}: cannot be read ({error.strerror or error})") from None


def _pack_mask(
    mask: SourceFile, image_name: str, image_shape: tuple[int, ...], anomalous: bool, strict: bool
) -> tuple[bytes, str]:
    """A PNG as it is, anything else as an equivalent PNG of 0 and 255; and what one should know of it."""
    data = _read(mask)
    read = read_mask(data, mask.suffix, mask.name, anomalous, mask.lossy)
    check_same_size(f"mask {read.called}", read.marked_HW.shape, f"its image {image_name}", image_shape)
    if read.odd and strict:
        raise ValueError(f"mask {mask.name} {read.odd}; mend or remove it, or say --allow-odd-masks")
    note = f"mask {mask.name} {read.odd}" if read.odd else read.note
    return data if read.as_stored else png_bytes(read.marked_HW.astype(np.uint8) * 255), note
