"""What is measured of every sample: plain values, as they go into JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import TypeAdapter, ValidationError

from unimmad.data.index import ModalityKind, Split

QUANTILES = 33
"""Of an image's values, evenly spaced from the smallest to the largest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """One image of one modality."""

    file: str
    """Its path, or its name in a shard."""
    kind: ModalityKind
    file_type: str
    """``PNG``, ``JPEG``, ``TIFF`` or ``NPY``, by its bytes."""
    mode: str
    """Colours as they are stored: Pillow's name (``L``, ``RGB``, ``P``, ``I;16``), of other files empty."""
    orientation: int
    """EXIF's: 1 upright, 2 to 8 turned or mirrored."""
    has_place: bool
    """Whether EXIF says where on Earth it was taken."""
    height: int
    width: int
    channels: int
    dtype: str
    quantiles: tuple[float, ...]
    """``QUANTILES`` of its finite values; of many pixels those of every n-th row and column, but the first and the last
    are exact. Empty where none is finite."""
    finite: float
    """The share of values that are neither NaN nor infinite."""
    bits: int | None
    """Of integers: from the lowest to the highest bit that any value uses; else None."""
    levels: int
    """Different values, of those that the quantiles are of."""
    seen_high: float
    """The largest value that the model sees: of 0 to 1, but of depth in centimetres."""
    colour: bool
    """Whether its channels differ."""
    digest: str
    """Equal where all pixels are equal."""
    span_m: float | None = None
    """Depth only: metres from its nearest to its farthest measured pixel."""
    measured: float | None = None
    """Depth only: about what share of its pixels is measured."""
    planes: bool = False
    """Whether a TIFF's channels are stored one after the other, as some writers store a stack of images."""

    @property
    def blank(self) -> bool:
        """Whether all its values are one."""
        return not self.quantiles or self.quantiles[0] == self.quantiles[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskFacts:
    """A sample's mask at full resolution."""

    file: str
    share: float
    """Of its pixels, those that it marks."""
    regions: int
    """Pieces that do not touch, not even by a corner."""
    smallest: int
    """Pixels of the smallest region; 0 without any."""
    smallest_at_size: float
    """And at the model's size: by how much the image shrinks."""
    lost: int
    """Regions of which resizing to the model's size by nearest neighbour leaves no pixel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairFacts:
    """How the edges in two of a sample's modalities lie over each other."""

    first: str
    second: str
    in_place: float
    """Correlation as they are."""
    best: float
    """Correlation where the second is shifted to fit best."""
    margin: float
    """By how much that is better than anywhere far from there."""
    down: float
    """That shift as a share of the height; positive: the second lies too high."""
    right: float
    """And of the width; positive: the second lies too far left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFacts:
    """All of one sample."""

    dataset: str
    class_name: str
    """``DATASET/CLASS``."""
    split: Split
    defect: str
    key: str
    images: dict[str, ImageFacts]
    """Those that could be read, by modality, in slot order."""
    mask: MaskFacts | None
    pairs: tuple[PairFacts, ...]
    problems: tuple[str, ...]
    """What could not be read, or does not fit."""

    @property
    def anomalous(self) -> bool:
        return self.defect != "good"

    @property
    def is_reference(self) -> bool:
        """Whether it says what is normal: of the split train or calibration."""
        return self.split != "test"

    @property
    def name(self) -> str:
        """For people: its first image's file, or its key."""
        return next((image.file for image in self.images.values()), f"{self.class_name} {self.key}")


@dataclass(frozen=True)
class Measured:
    """A sample's facts, and what is needed to compare it with others."""

    facts: SampleFacts
    hashes: dict[str, np.ndarray]
    """``duplicates.perceptual_hash`` of each of its images, by modality."""
    pixels: dict[str, np.ndarray]
    """``prepare.resized_pixels`` of each of its images, where they were asked for."""


_FACTS = TypeAdapter(tuple[SampleFacts, ...])


def facts_to_json(facts: Sequence[SampleFacts]) -> str:
    """JSON of samples' facts."""
    return _FACTS.dump_json(tuple(facts)).decode()


def facts_from_json(text: str) -> tuple[SampleFacts, ...]:
    """
    Raises:
        ValueError: it was not written by ``facts_to_json``.
    """
    try:
        return _FACTS.validate_json(text)
    except ValidationError as error:
        raise ValueError(f"these are not the facts of samples: {error.errors()[0]['msg']}") from None
