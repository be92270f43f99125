"""Normal training samples set aside for calibrating thresholds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from unimmad.data.layouts.source_set import SourceSample


def set_aside(samples: Sequence[SourceSample], share: float, seed: int) -> list[SourceSample]:
    """Move ``share`` of each class's training samples into the split ``calibration``.

    Which ones is a function of the seed and each sample's key: other samples, or their order, change nothing, and a
    smaller share is part of a larger one. A class gives at least one sample and keeps at least one.

    Args:
        samples: of one dataset; keys unique.
        share: of each class's training samples, from 0 up to, not including, 1; 0 moves nothing.
        seed: another one chooses others.

    Returns:
        The samples in their order.

    Raises:
        ValueError: the share is none.
    """
    if not 0 <= share < 1:
        raise ValueError(f"calibration share {share:g}: give 0 or more and less than 1")
    moved: set[str] = set()
    trained: dict[str, list[str]] = {}
    for sample in samples if share else ():
        if sample.split == "train":
            trained.setdefault(sample.class_name, []).append(sample.key)
    for keys in trained.values():
        count = min(max(1, round(share * len(keys))), len(keys) - 1)
        moved |= set(shuffled(keys, seed)[: max(0, count)])
    return [replace(sample, split="calibration") if sample.key in moved else sample for sample in samples]


def shuffled(names: Sequence[str], seed: int) -> list[str]:
    """Names in an order that depends on the seed and on nothing but each name."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
