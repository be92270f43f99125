"""One sample of a source made ready for a shard: read, decoded once to be checked, and described."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from unimmad.data.decode import check_same_size, decode, marked_pixels
from unimmad.data.image_facts import ImageFacts, facts_of
from unimmad.data.image_type import PNG
from unimmad.data.index import Member, SampleEntry
from unimmad.data.layouts.source_set import SourceFile, SourceSample, SourceSet
from unimmad.data.prepare import no_data_note

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
    notes: dict[str, str] = field(default_factory=dict)
    """By modality name: what one should know of its image."""
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
        )


def pack(work: Work) -> PackedSample:
    """
    Raises:
        ValueError: an image or the mask cannot be read, does not open, or does not fit the others.
    """
    found, sample = work
    members: dict[str, bytes] = {}
    slot_suffixes: dict[str, str] = {}
    notes: dict[str, str] = {}
    facts: dict[str, ImageFacts] = {}
    first: tuple[str, tuple[int, ...]] | None = None
    for modality in found.entry.modalities:
        file = sample.images.get(modality.name)
        if file is None:
            continue
        data = _read(file)
        decoded = decode(data, file.suffix, file.name)
        facts[modality.name] = facts_of(decoded, modality, file.name)
        if note := no_data_note(decoded.pixels, modality, file.name):
            notes[modality.name] = f"{file.name}: {note}"
        first = first or (decoded.called(file.name), decoded.pixels.shape)
        check_same_size(decoded.called(file.name), decoded.pixels.shape, *first)
        slot_suffixes[modality.name] = f"{modality.slot}{file.suffix}"
        members[slot_suffixes[modality.name]] = data
    if sample.mask is not None and first is not None:
        members["mask.png"] = _pack_mask(sample.mask, *first)
    members["json"] = _describe(found, sample)
    return PackedSample(found.name, sample, members, slot_suffixes, notes, facts)


def _read(file: SourceFile) -> bytes:
    try:
        return file.read()
    except OSError as error:
        raise ValueError(f"{file.name}: cannot be read ({error.strerror or error})") from None


def _pack_mask(mask: SourceFile, image_name: str, image_shape: tuple[int, ...]) -> bytes:
    """A PNG as it is; any other type as an equivalent PNG of 0 and 255."""
    data = _read(mask)
    decoded = decode(data, mask.suffix, mask.name)
    marked_HW = marked_pixels(decoded, mask.name)
    check_same_size(f"mask {decoded.called(mask.name)}", marked_HW.shape, f"its image {image_name}", image_shape)
    if decoded.file_type == PNG:
        return data
    buffer = io.BytesIO()
    Image.fromarray(marked_HW.astype(np.uint8) * 255).save(buffer, format="PNG")
    return buffer.getvalue()


def _describe(found: SourceSet, sample: SourceSample) -> bytes:
    description = {
        "key": sample.key,
        "dataset": found.name,
        "field": found.entry.field,
        "class_name": sample.class_name,
        "split": sample.split,
        "defect": sample.defect,
        "anomalous": sample.anomalous,
        "modalities": [modality.model_dump() for modality in found.entry.modalities if modality.name in sample.images],
    }
    return json.dumps(description, ensure_ascii=False).encode()
