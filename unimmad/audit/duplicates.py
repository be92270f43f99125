"""Samples that are in the data twice, and worst of all in training and in test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unimmad.audit.facts import ImageFacts, SampleFacts
from unimmad.audit.findings import Finding, Severity, finding
from unimmad.data.writing.duplicates import exact_duplicates, near_duplicates


@dataclass(frozen=True)
class DuplicatePair:
    """Two samples of which one modality shows the same."""

    first: SampleFacts
    second: SampleFacts
    modality: str
    correlation: float
    """1 where all pixels are equal, else of what sets them apart from their class."""

    @property
    def exact(self) -> bool:
        return self.correlation == 1

    @property
    def files(self) -> tuple[str, str]:
        return self.first.images[self.modality].file, self.second.images[self.modality].file

    @property
    def rank(self) -> tuple[int, int]:
        """Among pairs, the worst first."""
        return list(_SAID).index(_relation(self)), not self.exact


def find_duplicates(samples: Sequence[SampleFacts], hashes_NK: NDArray[np.uint8]) -> list[DuplicatePair]:
    """All pairs, the worst first; of more than two equal images each with the first.

    Args:
        samples: with their images' facts.
        hashes_NK: ``perceptual_hash`` of every image of every sample, in their order.
    """
    images = [(sample, name, image) for sample in samples for name, image in sample.images.items()]
    seen = [number for number, (_, _, image) in enumerate(images) if not image.blank]
    digests = [(images[n][0].dataset, images[n][1], images[n][2].digest) for n in seen]
    repeated: set[int] = set()
    pairs: list[DuplicatePair] = []
    for places in exact_duplicates(digests):
        first, *others = (seen[place] for place in places)
        repeated.update(others)
        pairs += [_pair(images[first], images[other], 1.0) for other in others]
    single = [number for number in seen if number not in repeated]
    groups = [(images[n][0].class_name, images[n][1]) for n in single]
    for near in near_duplicates(hashes_NK[single], groups):
        pairs.append(_pair(images[single[near.first]], images[single[near.second]], min(near.correlation, 1 - 1e-9)))
    return sorted(pairs, key=lambda pair: (*pair.rank, -pair.correlation))


def _pair(
    first: tuple[SampleFacts, str, ImageFacts], second: tuple[SampleFacts, str, ImageFacts], correlation: float
) -> DuplicatePair:
    return DuplicatePair(first[0], second[0], first[1], correlation)


def check_duplicates(pairs: Sequence[DuplicatePair]) -> Iterator[Finding]:
    """What pairs of ``find_duplicates`` mean, dataset by dataset; two samples that share several images count once."""
    groups: dict[tuple[str, str, bool], dict[tuple[str, str], DuplicatePair]] = {}
    for pair in pairs:
        of_group = groups.setdefault((pair.first.dataset, _relation(pair), pair.exact), {})
        of_group.setdefault((pair.first.key, pair.second.key), pair)
    for (where, relation, exact), by_samples in groups.items():
        severity, advice = _SAID[relation]
        yield finding(
            severity if exact else _milder(severity),
            "duplicates",
            where,
            f"pairs of images that are {'the same' if exact else 'nearly the same'} {relation}: {len(by_samples)}",
            advice if exact else f"look at them: if they are one picture, {advice}",
            [" = ".join(pair.files) for pair in by_samples.values()],
        )


_SAID = {
    "in training and test": (
        Severity.ERROR,
        "remove them from one of the two: what was trained on can't be tested with",
    ),
    "as normal and as anomalous": (Severity.ERROR, "decide which they are"),
    "in training and calibration": (Severity.ERROR, "remove them from one of the two"),
    "in test": (Severity.WARNING, "keep one of each, or they count twice"),
    "in training": (Severity.NOTE, "keep one of each"),
    "in calibration": (Severity.NOTE, "keep one of each"),
}
"""By where a pair is, the worst first."""


def _relation(pair: DuplicatePair) -> str:
    splits = {pair.first.split, pair.second.split}
    if "test" in splits and len(splits) == 2:
        return "in training and test"
    if len(splits) == 2:
        return "in training and calibration"
    if pair.first.anomalous != pair.second.anomalous:
        return "as normal and as anomalous"
    return {"test": "in test", "train": "in training"}.get(pair.first.split, "in calibration")


def _milder(severity: Severity) -> Severity:
    return Severity(max(Severity.NOTE, severity - 1))
