"""A shard folder's images as files again, for what reads files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unimmad.data.index import Modality
from unimmad.data.reading.shard_files import SampleRef
from unimmad.data.reading.shard_set import ShardSet


@dataclass(frozen=True)
class EncodedImage:
    """One modality's image of a sample, in a file of its own."""

    path: Path
    modality: Modality


def source_files(shards: ShardSet, refs: Sequence[SampleRef], target: Path) -> list[list[EncodedImage]]:
    """Write the members of ``refs`` to ``target``, once each; those of each sample, in slot order.

    Raises:
        ValueError: the shards are not local.
    """
    return [_files_of(shards, ref, target) for ref in refs]


def _files_of(shards: ShardSet, ref: SampleRef, target: Path) -> list[EncodedImage]:
    folder = shards.folders[ref.folder]
    if not isinstance(folder, Path):
        raise ValueError(f"{folder} is not a local folder; give the benchmark a path")
    shard = folder / shards.indexes[ref.folder].shards[ref.entry.shard].name
    files = []
    for modality in sorted(shards.datasets[ref.entry.dataset].modalities, key=lambda modality: modality.slot):
        member = ref.entry.images.get(modality.name)
        if member is None:
            continue
        path = target / member.name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with shard.open("rb") as tar:
                tar.seek(member.offset)
                path.write_bytes(tar.read(member.length))
        files.append(EncodedImage(path, modality))
    return files
