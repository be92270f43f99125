"""What the calibrated thresholds come to, as a report shows it: JSON beside each class's metrics, and a table.

The table has a row a class and a mean a dataset: shares are means of the classes that have them, defects are counted
over all classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from unimmad.metrics.at_threshold import SIZE_LIMITS, SIZE_NAMES, AtThreshold, joined
from unimmad.report.table import Row, Strong, Table
from unimmad.serialization.validation import Count, Entry

if TYPE_CHECKING:
    from unimmad.report.report import ClassResult, Report

UNDEFINED = "n/a"
HEADS = ("FPR", "TPR", "SegF1", "alarms", *SIZE_NAMES)
CAPTION = (
    "At the calibrated thresholds. FPR, TPR: share of the normal and of the anomalous images that are called "
    "anomalous. SegF1: F1 of the class's pixels. alarms: regions of the map above the threshold without a marked "
    "pixel, an image. "
    f"{SIZE_NAMES[0]} to {SIZE_NAMES[-1]}: defects found of all, by size in pixels of the map (squares of "
    f"{', '.join(str(int(limit**0.5)) for limit in SIZE_LIMITS)})."
)

Sizes = Annotated[tuple[Count, ...], Field(strict=False, min_length=len(SIZE_NAMES), max_length=len(SIZE_NAMES))]


class AtThresholdEntry(Entry):
    """The counts in report.json; what follows from them stands beside, for other readers."""

    normal: Count
    normal_above: Count
    anomalous: Count
    anomalous_above: Count
    undecided: Count
    segmented: Count
    pixels_hit: Count
    pixels_false: Count
    pixels_missed: Count
    false_regions: Count
    defects: Sizes
    defects_found: Sizes

    def counts(self) -> AtThreshold:
        """What ``AtThreshold.entry`` was given of."""
        return AtThreshold(**{field.name: getattr(self, field.name) for field in fields(AtThreshold)})


def at_threshold_table(report: Report) -> Table | None:
    """The table; None where no class has thresholds."""
    if all(result.at_threshold is None for result in report.classes):
        return None
    return Table(
        ("dataset", "class", *HEADS), list(_rows(report)), names=2, caption=CAPTION, notes=tuple(_notes(report))
    )


def at_threshold_csv(report: Report) -> str:
    """One row a class, all counts, full precision."""
    names = [name for name in AtThreshold().entry() if not name.startswith("defect")]
    sized = [f"{what} {size}" for what in ("defects", "found") for size in SIZE_NAMES]
    rows: list[Row] = []
    for result in report.classes:
        if (found := result.at_threshold) is not None:
            entry = found.entry()
            values = [UNDEFINED if entry[name] is None else repr(entry[name]) for name in names]
            counts = map(str, (*found.defects, *found.defects_found))
            rows.append((result.dataset, result.class_name, *values, *counts))
    return Table(("dataset", "class", *names, *sized), rows).to_csv()


def _rows(report: Report) -> Iterator[Row]:
    for dataset in report.datasets:
        results = report.classes_of(dataset)
        for result in results:
            yield dataset, result.class_name, *_cells([result])
        yield dataset, Strong(f"mean of {dataset}"), *map(Strong, _cells(results))


def _cells(results: Sequence[ClassResult]) -> list[str]:
    """Means of the shares, over the classes that have them, and sums of the defects."""
    counts = [result.at_threshold for result in results]
    total = joined(counts) or AtThreshold()
    shares = [
        (found.image_false_alarm_rate, found.image_recall, found.seg_f1, found.false_alarms_an_image)
        for found in counts
        if found is not None
    ]
    columns = zip(*shares, strict=True) if shares else [()] * 4
    means = []
    for column in columns:
        known = [value for value in column if value is not None]
        mark = "*" if known and len(known) < len(results) else ""
        means.append(f"{sum(known) / len(known):.3f}{mark}" if known else UNDEFINED)
    sized = zip(total.defects_found, total.defects, strict=True)
    return [*means, *(f"{found}/{all_}" if all_ else UNDEFINED for found, all_ in sized)]


def _notes(report: Report) -> Iterator[str]:
    # Whatever its classes are called, a note is a sentence of its own.
    if added := report.header.get("added classes"):
        yield f"borrowed from other classes, without a promised false-alarm rate: {added}"
    undecided = [f"{result.dataset}/{result.class_name}" for result in report.classes if _undecided(result)]
    if undecided:
        yield f"no threshold holds for some or all images of {', '.join(undecided)}, which are left out of FPR and TPR"
    without = [f"{result.dataset}/{result.class_name}" for result in report.classes if _not_segmented(result)]
    if without:
        yield (
            f"{UNDEFINED}: no threshold for pixels, or no mask: {', '.join(without)}; thresholds of an older version "
            "have none: calibrate again"
        )


def _undecided(result: ClassResult) -> bool:
    """Whether it has images without a threshold; a class without test images has none."""
    if result.at_threshold is None:
        return result.normal + result.anomalous > 0
    return result.at_threshold.undecided > 0


def _not_segmented(result: ClassResult) -> bool:
    return result.at_threshold is not None and not result.at_threshold.segmented
