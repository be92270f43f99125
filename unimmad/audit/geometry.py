"""Sizes and aspects against the model's square, and modalities that don't lie over each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unimmad.audit.facts import PairFacts, SampleFacts
from unimmad.audit.findings import Finding, Severity, by_class, finding
from unimmad.data.edges import CLEAR, LEAST_GAIN, LEAST_MARGIN, LEAST_SHIFT

LONG = 1.5
"""Longer side over shorter, from which on resizing to a square is told."""
SHRUNK = 4.0
"""Times smaller in the model than stored."""

ALIKE = 0.016
"""Shifts that differ by no more are the same: of the image's side."""
FEWEST = 5
"""Samples of a class, from which on one can be unlike the others."""
UNLIKE = 0.5
"""Of the class's usual correlation in place."""


def check_shapes(samples: Sequence[SampleFacts], image_size: int) -> Iterator[Finding]:
    """Images that are not square, shrink much, or differ between training and test."""
    for class_name, of_class in by_class(samples).items():
        sizes = Counter(
            (image.height, image.width) for sample in of_class for image in list(sample.images.values())[:1]
        )
        if not sizes:
            continue
        aspect = max(max(size) / min(size) for size in sizes)
        shrunk = max(max(size) / image_size for size in sizes)
        if shrunk > SHRUNK:
            yield finding(
                Severity.WARNING,
                "size",
                class_name,
                f"images of up to {_largest(sizes)} shrink {shrunk:.1f} times to the model's {image_size} pixels",
                "small defects vanish: use tiles, larger images, or crop to the part",
            )
        if aspect > LONG:
            yield finding(
                Severity.WARNING if aspect > SHRUNK else Severity.NOTE,
                "size",
                class_name,
                f"the longer side is up to {aspect:.1f} times the shorter, and becomes a square",
                "what is round becomes oval; crop, or keep the aspect where the recipe can",
            )
        yield from _other_sizes(class_name, of_class)


def _largest(sizes: Counter[tuple[int, int]]) -> str:
    height, width = max(sizes, key=max)
    return f"{width} x {height}"


def _other_sizes(class_name: str, samples: Sequence[SampleFacts]) -> Iterator[Finding]:
    """Sizes of which training has none, where training has but a few."""
    size = {id(sample): (image.height, image.width) for sample in samples for image in list(sample.images.values())[:1]}
    trained = {size[id(sample)] for sample in samples if sample.split == "train" and id(sample) in size}
    test = [sample for sample in samples if sample.split == "test" and id(sample) in size]
    other = [sample.name for sample in test if size[id(sample)] not in trained]
    if other and len(trained) <= 3:
        yield finding(
            Severity.NOTE,
            "size",
            class_name,
            f"{len(other)} of {len(test)} test images have a size that no training image has",
            "they may come from another camera or crop",
            other,
        )


@dataclass(frozen=True)
class Misaligned:
    """A sample of whose modalities one seems to lie elsewhere than the other."""

    sample: SampleFacts
    pair: PairFacts
    shifted: bool
    """Whether it is known by how much; else it is only unlike the class's other samples."""


def check_alignment(samples: Sequence[SampleFacts]) -> Iterator[Finding]:
    """Whole classes that are shifted, and samples that are unlike their class."""
    for class_name, of_class in by_class(samples).items():
        for names, pairs in _by_modalities(of_class).items():
            where = f"{class_name}, {names[0]} and {names[1]}"
            if (common := common_shift([pair for _, pair in pairs])) is not None:
                down, right = common
                yield finding(
                    Severity.ERROR,
                    "alignment",
                    where,
                    f"edges fit best where {names[1]} is moved by {down:+.1%} of the height and {right:+.1%} of the "
                    "width (down and right), in most samples",
                    "register the two sensors before training",
                    [sample.name for sample, _ in pairs],
                )
                continue
            odd = misaligned(pairs)
            if odd:
                yield finding(
                    Severity.WARNING,
                    "alignment",
                    where,
                    f"in {len(odd)} of {len(pairs)} samples the edges do not lie over each other as in the others",
                    "look whether files of different samples were mixed, or a sensor moved",
                    [found.sample.name for found in odd],
                )


def _by_modalities(samples: Sequence[SampleFacts]) -> dict[tuple[str, str], list[tuple[SampleFacts, PairFacts]]]:
    pairs: dict[tuple[str, str], list[tuple[SampleFacts, PairFacts]]] = {}
    for sample in samples:
        for pair in sample.pairs:
            pairs.setdefault((pair.first, pair.second), []).append((sample, pair))
    return pairs


def misaligned_samples(samples: Sequence[SampleFacts]) -> list[Misaligned]:
    """Of all classes, those to be looked at: of classes that are shifted as a whole, the clearest."""
    found: list[Misaligned] = []
    for of_class in by_class(samples).values():
        for pairs in _by_modalities(of_class).values():
            if common_shift([pair for _, pair in pairs]) is None:
                found += misaligned(pairs)
            else:
                clear = [Misaligned(sample, pair, True) for sample, pair in pairs if _is_shifted(pair)]
                found += sorted(clear, key=lambda one: -one.pair.best)[:FEWEST]
    return found


def common_shift(pairs: Sequence[PairFacts]) -> tuple[float, float] | None:
    """By how much most samples of a class are shifted (down, right); None where they are not, or each otherwise."""
    shifted = [pair for pair in pairs if _is_shifted(pair)]
    if len(shifted) < max(3, len(pairs) / 2):
        return None
    usual = np.median([(pair.down, pair.right) for pair in shifted], axis=0)
    alike = [pair for pair in shifted if np.abs(np.subtract((pair.down, pair.right), usual)).max() <= ALIKE]
    return (float(usual[0]), float(usual[1])) if len(alike) >= len(pairs) / 2 else None


def misaligned(pairs: Sequence[tuple[SampleFacts, PairFacts]]) -> list[Misaligned]:
    """Of one class and two modalities, the samples that are unlike the others; the worst first."""
    in_place = np.array([pair.in_place for _, pair in pairs])
    usual = float(np.median(in_place))
    if len(pairs) < FEWEST or usual < CLEAR:
        return []
    spread = 1.4826 * float(np.median(np.abs(in_place - usual)))
    limit = min(UNLIKE * usual, usual - 4 * spread)
    odd = [Misaligned(sample, pair, _is_shifted(pair)) for sample, pair in pairs if pair.in_place < limit]
    return sorted(odd, key=lambda found: found.pair.in_place)


def _is_shifted(pair: PairFacts) -> bool:
    return (
        pair.best >= CLEAR
        and pair.best - pair.in_place >= LEAST_GAIN
        and pair.margin >= LEAST_MARGIN
        and max(abs(pair.down), abs(pair.right)) > LEAST_SHIFT
    )
