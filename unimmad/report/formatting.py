"""What all tables share: numbers as text, marks, and footnotes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from unimmad.metrics.metrics import METRIC_KEYS, Metrics
from unimmad.report.report import ClassResult, Mean, Report
from unimmad.report.sensor_sets import set_notes
from unimmad.report.table import MARK

UNDEFINED = "n/a"
NOT_PUBLISHED = "-"

_REASONS: dict[str, Callable[[ClassResult], bool]] = {
    "no test image": lambda result: not (result.normal or result.anomalous),
    "no anomalous image, so no metric is defined": lambda result: result.normal > 0 and not result.anomalous,
    "no normal image, so no image metric is defined": lambda result: result.anomalous > 0 and not result.normal,
    "masks missing, empty, or lost in resizing, so no pixel metric is defined": lambda result: (
        result.anomalous > 0 and result.metrics["P-AP"] is None
    ),
}
"""Why a class lacks some metrics."""


def footnotes(report: Report) -> tuple[str, ...]:
    """Why some metrics are undefined; which classes have images of different modalities; for each mean that is not over
    all, what it covers; and where published rows come from."""
    partial = (f"{MARK} {mean.name} covers {coverage(mean)}" for mean in report.means() if mean.marked)
    sets = (
        note
        for result in report.classes
        for note in set_notes(f"{result.dataset}/{result.class_name}", result.sensor_sets)
    )
    published = (f"published: {row.name}: {row.source}. {row.note}" for row in report.published)
    return (*_undefined(report), *sets, *partial, *published)


def _undefined(report: Report) -> Iterator[str]:
    """Classes that lack what some metrics need."""
    for reason, applies in _REASONS.items():
        names = [f"{result.dataset}/{result.class_name}" for result in report.classes if applies(result)]
        if names:
            yield f"{UNDEFINED}: {reason}: {', '.join(names)}"


def coverage(mean: Mean) -> str:
    """Such as ``3 of 4 classes for P-AP, AUPRO; 2 of 4 classes for I-AP``; empty when all are covered."""
    keys_of: dict[int, list[str]] = {}
    for key, count in mean.incomplete.items():
        keys_of.setdefault(count, []).append(key)
    parts = [f"{count} of {mean.members} {mean.unit} for {', '.join(keys)}" for count, keys in keys_of.items()]
    in_part_of: dict[int, list[str]] = {}
    for key, count in mean.in_part.items():
        if count:
            in_part_of.setdefault(count, []).append(key)
    parts += [f"{count} {mean.unit} in part only for {', '.join(keys)}" for count, keys in in_part_of.items()]
    return "; ".join(parts)


def cells(metrics: Metrics, undefined: str = UNDEFINED, form: Callable[[float], str] = "{:.3f}".format) -> list[str]:
    """In the order of ``METRIC_KEYS``, 3 decimals; ``repr`` as ``form`` gives the same numbers when they are read."""
    return [undefined if (value := metrics[key]) is None else form(value) for key in METRIC_KEYS]


def mean_cells(mean: Mean) -> list[str]:
    """As :func:`cells`, with a mark behind the numbers that cover fewer members than there are."""
    marked = {key for key in mean.marked if mean.covered[key]}
    by_key = zip(METRIC_KEYS, cells(mean.metrics), strict=True)
    return [cell + MARK if key in marked else cell for key, cell in by_key]
