"""Data sets written as shards: plain WebDataset tars and the index beside them.

    TARGET/
      index.json
      train-000000.tar ...    every class's normal samples
      test-000000.tar ...     kept apart, so that training never opens them

A sample's members are ``DATASET/KEY.json``, ``DATASET/KEY.SLOT.SUFFIX`` for each modality and
``DATASET/KEY.mask.png``. The same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image
from tqdm import tqdm
from webdataset import TarWriter

from unimmad.data.decode import check_same_size, decode_image, decode_mask_pixels
from unimmad.data.index import (
    INDEX_NAME,
    Index,
    Member,
    SampleEntry,
    ShardEntry,
    Split,
)
from unimmad.data.prepare import check_fits
from unimmad.data.replace_folder import replaced_folder
from unimmad.data.source import SourceFile, SourceSample, SourceSet
from unimmad.data.source_checks import check_sets

SHARD_BYTES = 64 * 2**20
"""A shard is closed before the sample that would make it larger than this."""
TAR_BLOCK = 512


def write_shards(
    sets: Sequence[SourceSet],
    target: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    allow_missing: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Index:
    """Write data sets as one shard folder, whole or not at all.

    Every image and mask is decoded once and checked before it goes into a shard.

    Args:
        sets: what to write; names must differ.
        target: the folder to make. It appears only when everything in it is written.
        shard_bytes: see ``SHARD_BYTES``.
        allow_missing: write samples that lack a modality, without it.
        overwrite: replace ``target`` if it is a shard folder.
        progress: show a progress bar where stderr is a terminal.

    Returns:
        The index written to ``target``.

    Raises:
        ValueError: a set that cannot be used (see ``source_checks``), an image that does not open, sizes that
            differ within a sample, or a target that exists.
    """
    check_sets(sets, allow_missing)
    with replaced_folder(target, overwrite) as folder:
        total = sum(len(found.samples) for found in sets)
        with tqdm(total=total, desc=f"writing {target}", unit=" samples", disable=None if progress else True) as bar:
            index = _write(sets, folder, shard_bytes, bar)
        (folder / INDEX_NAME).write_text(index.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return index


@dataclass(frozen=True)
class _Packed:
    """One sample as it goes into a tar."""

    dataset: str
    sample: SourceSample
    members: dict[str, bytes]
    """By what follows ``DATASET/KEY.``"""
    slot_suffixes: dict[str, str]
    """By modality name: ``SLOT.SUFFIX``."""

    @property
    def tar_bytes(self) -> int:
        return sum(TAR_BLOCK + -(-len(data) // TAR_BLOCK) * TAR_BLOCK for data in self.members.values())

    @property
    def path(self) -> str:
        return f"{self.dataset}/{self.sample.key}"


def _write(sets: Sequence[SourceSet], folder: Path, shard_bytes: int, bar: tqdm) -> Index:
    shards: list[ShardEntry] = []
    entries: list[SampleEntry] = []
    for split in get_args(Split):
        for number, packed in enumerate(_shards_of(_pack_split(sets, split, bar), shard_bytes)):
            path = folder / f"{split}-{number:06d}.tar"
            entries += _write_shard(path, packed, shard=len(shards))
            shards.append(
                ShardEntry(name=path.name, bytes=path.stat().st_size, sha256=_sha256(path), samples=len(packed))
            )
    return Index(
        source="; ".join(f"{found.name}: {found.description}" for found in sets),
        datasets={found.name: found.entry for found in sets},
        shards=tuple(shards),
        samples=tuple(entries),
    )


def _pack_split(sets: Sequence[SourceSet], split: Split, bar: tqdm) -> Iterator[_Packed]:
    for found in sets:
        chosen = [sample for sample in found.samples if sample.split == split]
        for sample in sorted(chosen, key=lambda sample: sample.class_name):  # stable: a class keeps its order
            yield _pack(found, sample)
            bar.update()


def _shards_of(samples: Iterator[_Packed], shard_bytes: int) -> Iterator[list[_Packed]]:
    """Cut the samples, in their order, into shards."""
    shard: list[_Packed] = []
    size = 0
    for packed in samples:
        if shard and size + packed.tar_bytes > shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(packed)
        size += packed.tar_bytes
    if shard:
        yield shard


def _pack(found: SourceSet, sample: SourceSample) -> _Packed:
    members: dict[str, bytes] = {}
    slot_suffixes: dict[str, str] = {}
    first: tuple[str, tuple[int, ...]] | None = None
    for modality in found.entry.modalities:
        file = sample.images.get(modality.name)
        if file is None:
            continue
        data = _read(file)
        array = decode_image(data, file.suffix, file.name)
        check_fits(array, modality, file.name)
        first = first or (file.name, array.shape)
        check_same_size(file.name, array.shape, *first)
        slot_suffixes[modality.name] = f"{modality.slot}{file.suffix}"
        members[slot_suffixes[modality.name]] = data
    if sample.mask is not None and first is not None:
        members["mask.png"] = _pack_mask(sample.mask, *first)
    members["json"] = _describe(found, sample)
    return _Packed(found.name, sample, members, slot_suffixes)


def _read(file: SourceFile) -> bytes:
    try:
        return file.read()
    except OSError as error:
        raise ValueError(f"{file.name}: cannot be read ({error.strerror or error})") from None


def _pack_mask(mask: SourceFile, image_name: str, image_shape: tuple[int, ...]) -> bytes:
    """A PNG as it is; any other type as an equivalent PNG of 0 and 255."""
    data = _read(mask)
    marked_HW = decode_mask_pixels(data, mask.suffix, mask.name)
    check_same_size(f"mask {mask.name}", marked_HW.shape, f"its image {image_name}", image_shape)
    if mask.suffix == ".png":
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


def _write_shard(path: Path, samples: Sequence[_Packed], shard: int) -> list[SampleEntry]:
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
    return [_entry(packed, members, shard) for packed in samples]


def _entry(packed: _Packed, members: dict[str, Member], shard: int) -> SampleEntry:
    sample = packed.sample
    return SampleEntry(
        key=sample.key,
        dataset=packed.dataset,
        class_name=sample.class_name,
        split=sample.split,
        defect=sample.defect,
        anomalous=sample.anomalous,
        shard=shard,
        images={name: members[f"{packed.path}.{suffix}"] for name, suffix in packed.slot_suffixes.items()},
        mask=members.get(f"{packed.path}.mask.png"),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
