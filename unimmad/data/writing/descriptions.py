"""What each sample says of itself in its shard, for whoever reads shards without their index."""

from __future__ import annotations

import json
from collections.abc import Collection

from unimmad.data.index import DatasetEntry
from unimmad.data.layouts.source_set import SourceSample

DESCRIPTION = "json"
"""A sample's member that says what it is."""
_MODALITIES = "modalities"


def describe(dataset: str, entry: DatasetEntry, sample: SourceSample) -> bytes:
    """A sample's description."""
    description = {
        "key": sample.key,
        "dataset": dataset,
        "field": entry.field,
        "class_name": sample.class_name,
        "split": sample.split,
        "defect": sample.defect,
        "anomalous": sample.anomalous,
        _MODALITIES: _modalities(entry, sample.images),
    }
    return json.dumps(description, ensure_ascii=False).encode()


def described_anew(description: bytes, entry: DatasetEntry, images: Collection[str]) -> bytes:
    """The same with modalities as ``entry`` has them; ``images`` are the names of the sample's own."""
    changed = json.loads(description) | {_MODALITIES: _modalities(entry, images)}
    return json.dumps(changed, ensure_ascii=False).encode()


def _modalities(entry: DatasetEntry, images: Collection[str]) -> list[dict[str, object]]:
    return [modality.model_dump() for modality in entry.modalities if modality.name in images]
