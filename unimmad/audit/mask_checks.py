"""Masks: missing, empty, full, on normal samples, and defects too small for the model's image size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from unimmad.audit.facts import MaskFacts, SampleFacts
from unimmad.audit.findings import Finding, Severity, by_class, finding

MOSTLY = 0.5
"""Share of the image that a defect seldom covers."""
SMALL_AT_SIZE = 4.0
"""Pixels at the model's size, below which a region is hardly seen."""


def pixels(count: float) -> str:
    """Pixels for people: two digits of few, none behind the point of many."""
    return f"{count:.2g}" if count < 10 else f"{count:.0f}"


def by_defect(samples: Sequence[SampleFacts]) -> dict[str, list[SampleFacts]]:
    """The anomalous samples of one class, by defect."""
    defects: dict[str, list[SampleFacts]] = {}
    for sample in samples:
        if sample.anomalous:
            defects.setdefault(sample.defect, []).append(sample)
    return defects


def check_masks(samples: Sequence[SampleFacts], image_size: int) -> Iterator[Finding]:
    """All of them, class by class and defect by defect."""
    for class_name, of_class in by_class(samples).items():
        yield from _on_normal(class_name, of_class)
        for defect, of_defect in by_defect(of_class).items():
            where = f"{class_name}, {defect}"
            yield from _coverage(where, of_defect)
            yield from _small(where, [sample.mask for sample in of_defect if sample.mask], image_size)


def _on_normal(class_name: str, samples: Sequence[SampleFacts]) -> Iterator[Finding]:
    marked = [sample.name for sample in samples if not sample.anomalous and sample.mask and sample.mask.share > 0]
    if marked:
        yield finding(
            Severity.ERROR,
            "masks",
            class_name,
            f"normal samples with a mask that marks something: {len(marked)}",
            "they are anomalous, or the masks are wrong",
            marked,
        )


def _coverage(where: str, samples: Sequence[SampleFacts]) -> Iterator[Finding]:
    without = [sample.name for sample in samples if sample.mask is None and not sample.problems]
    if without:
        whole = len(without) == len(samples)
        yield finding(
            Severity.NOTE if whole else Severity.WARNING,
            "masks",
            where,
            f"{len(without)} of {len(samples)} have no mask",
            "pixel metrics leave them out",
            without,
        )
    masks = [sample.mask for sample in samples if sample.mask]
    for files, what in (
        ([mask.file for mask in masks if mask.share == 0], "empty masks"),
        ([mask.file for mask in masks if mask.share == 1], "masks that mark the whole image"),
    ):
        if files:
            yield finding(
                Severity.ERROR, "masks", where, f"{what}: {len(files)} of {len(masks)}", "draw them again", files
            )
    large = [mask.file for mask in masks if MOSTLY < mask.share < 1]
    if large:
        yield finding(
            Severity.WARNING,
            "masks",
            where,
            f"{len(large)} of {len(masks)} masks mark more than half of the image",
            "look whether they are inverted",
            large,
        )


def _small(where: str, masks: Sequence[MaskFacts], image_size: int) -> Iterator[Finding]:
    regions = sum(mask.regions for mask in masks)
    lost = sum(mask.lost for mask in masks)
    small = sorted((mask for mask in masks if 0 < mask.smallest_at_size < SMALL_AT_SIZE), key=_smallest)
    if not small and not lost:
        return
    least = min(mask.smallest_at_size for mask in masks if mask.regions)
    size = f"the model's {image_size} x {image_size}"
    told = [
        f"the smallest region in {len(small)} of {len(masks)} masks has less than {SMALL_AT_SIZE:g} pixels at {size}, "
        f"the least {pixels(least)}"
    ]
    rule = f"resized to {size} by nearest neighbour, as by the recipes paper and real"
    vanish = [f"{lost} of {regions} regions vanish where masks are {rule}"]
    yield finding(
        Severity.WARNING,
        "small defects",
        where,
        "; ".join([*(told if small else []), *(vanish if lost else [])]),
        "train on larger images (model.image_size), by tiles, or crop to the part; --mask-resize area loses no region",
        [mask.file for mask in small] or [mask.file for mask in masks if mask.lost],
    )


def _smallest(mask: MaskFacts) -> float:
    return mask.smallest_at_size
