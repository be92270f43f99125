"""Modalities left out of training samples at random, so that a model learns to do without each sensor.

A rule like the order's: which modalities stay at a position is a pure function of (seed, epoch, position), whatever
sample stands there and whoever reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from unimmad.data.reading.counter_rng import Purpose, below, counter_rng
from unimmad.data.reading.shard_files import SampleRef

T = TypeVar("T")

_WORD_BITS = 64


@dataclass(frozen=True)
class ModalityDropout:
    """Leaves each modality of a sample out with the same probability; where none would be left, one stays.

    Raises:
        ValueError: ``probability`` is not in 0 to 1.
    """

    seed: int
    """The training order's."""
    probability: float

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"a modality dropout of {self.probability} is not a probability; choose 0 to 1")

    def drop_modalities(self, ref: SampleRef, epoch: int, position: int) -> SampleRef:
        """The sample at a position without the images that are left out; what is not listed is not read."""
        names = self.kept(tuple(ref.entry.images), epoch, position)
        images = {name: ref.entry.images[name] for name in names}
        return replace(ref, entry=replace(ref.entry, images=images))

    def kept(self, modalities: Sequence[T], epoch: int, position: int) -> list[T]:
        """Those that stay at a position, in their order: at least one, drawn evenly where all would go."""
        first, *others = counter_rng(self.seed, Purpose.MODALITY_DROPOUT, epoch, position, 1 + len(modalities))
        threshold = self.probability * 2**_WORD_BITS
        kept = [one for one, word in zip(modalities, others, strict=True) if int(word) >= threshold]
        return kept or [modalities[int(below(first, len(modalities)))]]
