"""Two reports side by side: what changed, class by class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from unimmad.metrics.metrics import METRIC_KEYS, Metrics
from unimmad.report.formatting import cells
from unimmad.report.measured_at import FACT, NOT_TO_BE_COMPARED, measured_at
from unimmad.report.report import Report, from_json
from unimmad.report.table import Table
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.documents import read_limited

REPORT = "report.json"


@dataclass(frozen=True)
class ComparedRow:
    """One class or mean in both reports."""

    dataset: str
    """Empty for the means that go beyond one dataset."""
    name: str
    ours: Metrics
    theirs: Metrics

    @property
    def differences(self) -> Metrics:
        """Ours minus theirs; None where either is undefined."""
        return {key: _difference(self.ours[key], self.theirs[key]) for key in METRIC_KEYS}


@dataclass(frozen=True)
class OtherReport:
    """A report to compare with."""

    name: str
    """What it is called, such as its file."""
    report: Report

    def check_common(self, class_names: Iterable[str]) -> None:
        """
        Raises:
            ValueError: it has none of these ``DATASET/CLASS``.
        """
        if not set(_names(self.report)) & set(class_names):
            raise ValueError(f"{self.name} has no class in common with this report; compare reports over the same data")


@dataclass(frozen=True)
class Comparison:
    """This report against another one, over the classes that both have."""

    other: str
    """What the other report is called, such as its file."""
    rows: tuple[ComparedRow, ...]
    """Classes and means; means are those of the common classes."""
    header: tuple[tuple[str, str, str], ...]
    """Facts of the headers that differ: name, ours, theirs."""
    only_ours: tuple[str, ...]
    """``DATASET/CLASS`` names."""
    only_theirs: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """In words: what else differs, first of all the size at which pixels were measured."""
        facts = [f"{key}: {ours} (this), {theirs} (other)" for key, ours, theirs in self.header if key != FACT]
        for _, ours, theirs in (fact for fact in self.header if fact[0] == FACT):
            facts.insert(0, f"{FACT}: {ours} (this), {theirs} (other): {NOT_TO_BE_COMPARED}")
        missing = (
            f"only in {where} and left out: {', '.join(names)}"
            for where, names in (("this report", self.only_ours), ("the other", self.only_theirs))
            if names
        )
        return (*facts, *missing)


def read_report(path: Path) -> Report:
    """Read a report.json; a folder stands for the one in it.

    Raises:
        ValueError: the file can't be read as a report.
    """
    file = path / REPORT if path.is_dir() else path
    try:
        return from_json(read_limited(file).decode())
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} can't be read as a report ({error}); name the report.json of another run") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def report_in(folder: Path) -> Report | None:
    """The report that lies there; None where there is none that can be read."""
    try:
        return read_report(folder / REPORT)
    except ValueError:
        return None


def compare(report: Report, other: OtherReport) -> Comparison:
    """``report`` against ``other``.

    Raises:
        ValueError: they have no class in common.
    """
    ours, theirs = _names(report), _names(other.report)
    other.check_common(ours)
    common = [class_name for class_name in ours if class_name in set(theirs)]
    keys = dict.fromkeys((*report.header, *other.report.header))
    headers = [one | {FACT: measured_at(one)} if FACT in keys else one for one in (report.header, other.report.header)]
    facts = ((key, headers[0].get(key, "-"), headers[1].get(key, "-")) for key in keys)
    return Comparison(
        other=other.name,
        rows=tuple(_rows(_only(report, common), _only(other.report, common))),
        header=tuple(fact for fact in facts if fact[1] != fact[2]),
        only_ours=tuple(class_name for class_name in ours if class_name not in common),
        only_theirs=tuple(class_name for class_name in theirs if class_name not in common),
    )


def difference_table(comparison: Comparison) -> Table:
    """The differences, one row a class or mean, and what else differs."""
    return Table(
        heads=("dataset", "class", *METRIC_KEYS),
        rows=[(row.dataset, row.name, *signed_cells(row.differences)) for row in comparison.rows],
        names=2,
        caption=f"Differences: this report minus {comparison.other}.",
        notes=comparison.notes,
    )


def write_comparison(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    """Write comparison.csv (both values and the difference, full precision) and comparison.md into ``folder``.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    contents = {"comparison.csv": _csv(comparison), "comparison.md": difference_table(comparison).to_markdown()}
    for name, content in contents.items():
        write_text_aside(folder / name, content)
    return tuple(folder / name for name in contents)


def _csv(comparison: Comparison) -> str:
    rows = []
    for row in comparison.rows:
        values = (cells(metrics, form=repr) for metrics in (row.ours, row.theirs, row.differences))
        rows += [(row.dataset, row.name, *of_key) for of_key in zip(METRIC_KEYS, *values, strict=True)]
    return Table(("dataset", "row", "metric", "this", "other", "difference"), rows).to_csv()


def _rows(report: Report, other: Report) -> Iterator[ComparedRow]:
    theirs = {(result.dataset, result.class_name): result.metrics for result in other.classes}
    for dataset in report.datasets:
        for result in report.classes_of(dataset):
            yield ComparedRow(dataset, result.class_name, result.metrics, theirs[dataset, result.class_name])
        mean = report.mean_of_dataset(dataset)
        yield ComparedRow(dataset, mean.name, mean.metrics, other.mean_of_dataset(dataset).metrics)
    for mean in report.means_of_all():
        matching = {found.name: found.metrics for found in other.means_of_all()}
        if mean.name in matching:
            yield ComparedRow("", mean.name, mean.metrics, matching[mean.name])


def _names(report: Report) -> list[str]:
    return [f"{result.dataset}/{result.class_name}" for result in report.classes]


def _only(report: Report, names: list[str]) -> Report:
    kept = (result for result in report.classes if f"{result.dataset}/{result.class_name}" in names)
    return replace(report, classes=tuple(kept))


def _difference(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs


def signed_cells(differences: Metrics) -> list[str]:
    """3 decimals with a sign; no sign where it rounds to zero."""
    return cells(differences, form=lambda value: f"{value:+.3f}" if round(value, 3) else "0.000")
