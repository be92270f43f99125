"""Normal training samples set aside for calibrating thresholds."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from unimmad.data.layouts.source_set import SourceSample


def set_aside(samples: Sequence[SourceSample], share: float, seed: int) -> list[SourceSample]:
    """Move about ``share`` of each class's training samples into the split ``calibration``.

    Whether a sample moves is a function of the seed and its own key: whatever other samples come or go, it stays where
    it is, so what a model was trained on never becomes what it is calibrated by. A smaller share is part of a larger
    one. A small class may give none, see ``not_set_aside``.

    Args:
        samples: of one dataset; keys unique.
        share: of each class's training samples, from 0 up to, not including, 1; 0 moves nothing.
        seed: another one chooses others.

    Returns:
        The samples in their order.

    Raises:
        ValueError: the share is none, or a class would have no training sample left.
    """
    if not 0 <= share < 1:
        raise ValueError(f"calibration share {share:g}: give 0 or more and less than 1")
    moved = [
        replace(sample, split="calibration") if sample.split == "train" and place(sample.key, seed) < share else sample
        for sample in samples
    ]
    before, left = _trained(samples), _trained(moved)
    if emptied := sorted(before.keys() - left.keys()):
        raise ValueError(
            f"class {emptied[0]}: the calibration split would take all of its {before[emptied[0]]} training images "
            f"(fraction {share:g}, seed {seed}); add images, or say a smaller --calibration-fraction or another --seed"
        )
    return moved


def not_set_aside(samples: Sequence[SourceSample]) -> str:
    """What to say of classes that gave nothing for calibration, where others or their share were to; empty: nothing."""
    given = {sample.class_name for sample in samples if sample.split == "calibration"}
    without = {name: count for name, count in _trained(samples).items() if name not in given}
    if not without:
        return ""
    counts = ", ".join(f"{name} ({count})" for name, count in list(without.items())[:5])
    more = f" and {len(without) - 5} more" if len(without) > 5 else ""
    return (
        f"no calibration image was drawn of these classes with few training images: {counts}{more}; a larger "
        "--calibration-fraction or another --seed draws some"
    )


def place(key: str, seed: int) -> float:
    """A number from 0 up to 1 that depends on the seed and the key alone, as if drawn by chance."""
    return int.from_bytes(_digest(key, seed)[:6]) / 2**48


def shuffled(names: Sequence[str], seed: int) -> list[str]:
    """Names in an order that depends on the seed and on nothing but each name."""
    return sorted(names, key=lambda name: _digest(name, seed))


def _digest(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{name}".encode()).digest()


def _trained(samples: Sequence[SourceSample]) -> Counter[str]:
    """Training samples by class."""
    return Counter(sample.class_name for sample in samples if sample.split == "train")
