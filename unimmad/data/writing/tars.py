"""Tars of samples: written, and written again where what they say of modalities became known only later."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from webdataset import TarWriter

from unimmad.data.index import DatasetEntry, Member, SampleEntry, ShardEntry
from unimmad.data.writing.descriptions import DESCRIPTION, described_anew
from unimmad.data.writing.shard_notes import sha256_of


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> dict[str, Member]:
    """Write one tar of ``DATASET/KEY`` and its members by what follows; where each lies, by name."""
    with (
        path.open("xb") as stream,
        TarWriter(stream, encoder=False, mtime=0, format="PAX_FORMAT") as writer,
    ):
        for name, members in samples:
            writer.write({"__key__": name, **members})
    with tarfile.open(path) as tar:
        return {
            info.name: Member(name=info.name, offset=info.offset_data, length=info.size) for info in tar.getmembers()
        }


def write_settled(
    path: Path, shard: ShardEntry, samples: Sequence[SampleEntry], datasets: Mapping[str, DatasetEntry]
) -> tuple[ShardEntry, list[SampleEntry]]:
    """Write a finished tar again, its descriptions with the modalities of ``datasets``.

    Returns:
        Its entries as they are now.
    """
    aside = path.with_suffix(".settled")
    aside.unlink(missing_ok=True)
    members = write_tar(aside, _settled(path, samples, datasets))
    os.replace(aside, path)
    entries = [
        replace(
            sample,
            images={name: members[member.name] for name, member in sample.images.items()},
            mask=None if sample.mask is None else members[sample.mask.name],
        )
        for sample in samples
    ]
    return shard.model_copy(update={"bytes": path.stat().st_size, "sha256": sha256_of(path)}), entries


def _settled(
    path: Path, samples: Sequence[SampleEntry], datasets: Mapping[str, DatasetEntry]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        places = {info.name: slice(info.offset_data, info.offset_data + info.size) for info in tar.getmembers()}
    for sample in samples:
        name = f"{sample.dataset}/{sample.key}"
        stored = [*sample.images.values(), *([sample.mask] if sample.mask else [])]
        members = {member.name.removeprefix(f"{name}."): content[places[member.name]] for member in stored}
        description = content[places[f"{name}.{DESCRIPTION}"]]
        described = described_anew(description, datasets[sample.dataset], sample.images)
        yield name, {**members, DESCRIPTION: described}
