"""A report as text: for the screen (80 columns), Markdown and CSV."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterator
from pathlib import Path

from unimmad.evaluation.metrics import METRIC_KEYS, Metrics
from unimmad.evaluation.report import Mean, Report, to_json
from unimmad.files import write_text_aside

WIDTH = 80
UNDEFINED = "n/a"
_NAME_WIDTH = 24
_CELL_WIDTH = 7
_GROUPS = (("image", 3), ("pixel", 5))
_HEADS = ("AUROC", "AP", "F1max", "AUROC", "AP", "F1max", "AUPRO", "PRO-99")
_PARTIAL = "*"
"""Marks a mean that covers fewer members than there are; the footnotes say how many."""


def screen_table(report: Report) -> str:
    """The report for a terminal: header, one row a class, the means, footnotes; 3 decimals."""
    lines = [*_screen_header(report), *_screen_heads(), "-" * WIDTH]
    for dataset in report.datasets:
        classes = report.classes_of(dataset)
        lines.append(f"{dataset} ({classes[0].field})")
        for result in classes:
            lines += _screen_row(f"  {result.class_name}", _cells(result.metrics))
        lines += [*_screen_mean(report.mean_of_dataset(dataset)), ""]
    lines[-1] = "-" * WIDTH
    lines += [*_screen_mean(report.mean_of_classes()), *_screen_mean(report.mean_of_datasets())]
    for note in footnotes(report):
        lines += textwrap.wrap(note, WIDTH, subsequent_indent="  ")
    return "\n".join(lines) + "\n"


def markdown_table(report: Report) -> str:
    """The report as Markdown: header as a list, a table with the counts of images, footnotes."""
    lines = [f"- {_escaped(key)}: {_escaped(value)}" for key, value in report.header.items()]
    heads = ("data set", "class", "normal", "anomalous", *METRIC_KEYS)
    lines += ["", _markdown_row(heads), _markdown_row(("---", "---", *["---:"] * (len(heads) - 2)))]
    for result in report.classes:
        names = (_escaped(result.dataset), _escaped(result.class_name))
        counts = (str(result.normal), str(result.anomalous))
        lines.append(_markdown_row((*names, *counts, *_cells(result.metrics))))
    for mean in report.means():
        cells = (f"**{cell}**" for cell in _mean_cells(mean, partial=r"\*"))
        lines.append(_markdown_row((f"**{_escaped(mean.name)}**", "", "", "", *cells)))
    for note in footnotes(report):
        lines += ["", _escaped(note).replace(_PARTIAL, r"\*", 1)]
    return "\n".join(lines) + "\n"


def csv_table(report: Report) -> str:
    """The report as CSV: one row a class or mean, full precision, ``n/a`` where undefined.

    ``row`` is ``class`` or the mean's name; ``note`` says which metrics of a mean cover fewer members.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("row", "dataset", "field", "class", "normal", "anomalous", *METRIC_KEYS, "note"))
    for result in report.classes:
        names = (result.dataset, result.field, result.class_name, result.normal, result.anomalous)
        writer.writerow(("class", *names, *_exact(result.metrics), ""))
    for mean in report.means():
        writer.writerow((mean.name, "", "", "", "", "", *_exact(mean.metrics), _coverage(mean)))
    return text.getvalue()


def write_tables(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write report.json, report.csv and report.md into ``folder`` (made if missing); returns their paths.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    contents = {
        "report.json": to_json(report),
        "report.csv": csv_table(report),
        "report.md": markdown_table(report),
    }
    for name, content in contents.items():
        write_text_aside(folder / name, content)
    return tuple(folder / name for name in contents)


def footnotes(report: Report) -> tuple[str, ...]:
    """For each mean that covers fewer members than there are, which metrics and how many."""
    return tuple(f"{_PARTIAL} {mean.name} covers {_coverage(mean)}" for mean in report.means() if mean.incomplete)


def _coverage(mean: Mean) -> str:
    """Such as ``3 of 4 classes for P-AP, AUPRO; 2 of 4 classes for I-AP``; empty when all are covered."""
    keys_of: dict[int, list[str]] = {}
    for key, count in mean.incomplete.items():
        keys_of.setdefault(count, []).append(key)
    return "; ".join(f"{count} of {mean.members} {mean.unit} for {', '.join(keys)}" for count, keys in keys_of.items())


def _cells(metrics: Metrics) -> list[str]:
    return [UNDEFINED if metrics[key] is None else f"{metrics[key]:.3f}" for key in METRIC_KEYS]


def _exact(metrics: Metrics) -> list[str]:
    return [UNDEFINED if metrics[key] is None else repr(metrics[key]) for key in METRIC_KEYS]


def _mean_cells(mean: Mean, partial: str = _PARTIAL) -> list[str]:
    marked = {key for key in mean.incomplete if mean.covered[key]}
    cells = zip(METRIC_KEYS, _cells(mean.metrics), strict=True)
    return [cell + partial if key in marked else cell for key, cell in cells]


def _screen_header(report: Report) -> Iterator[str]:
    width = max((len(key) for key in report.header), default=0)
    for key, value in report.header.items():
        indent = " " * (width + 2)
        yield from textwrap.wrap(
            f"{key + ':':<{width + 2}}{value}", WIDTH, subsequent_indent=indent, break_long_words=False
        )
    if report.header:
        yield ""


def _screen_heads() -> Iterator[str]:
    groups = (f" {name} ".center(_CELL_WIDTH * columns - 2, "-") for name, columns in _GROUPS)
    yield " " * _NAME_WIDTH + "".join(f"  {group}" for group in groups)
    yield "class".ljust(_NAME_WIDTH) + _aligned(_HEADS)


def _screen_mean(mean: Mean) -> Iterator[str]:
    yield from _screen_row(mean.name, _mean_cells(mean))


def _screen_row(name: str, cells: list[str]) -> Iterator[str]:
    """One line, or two where the name is too long for its column."""
    if len(name) >= _NAME_WIDTH:
        yield name
        name = ""
    yield name.ljust(_NAME_WIDTH) + _aligned(cells)


def _aligned(cells: list[str] | tuple[str, ...]) -> str:
    """Right-aligned, with the place for a mark kept free behind each number."""
    padded = (cell if cell.endswith(_PARTIAL) or len(cell) == _CELL_WIDTH - 1 else f"{cell} " for cell in cells)
    return "".join(cell.rjust(_CELL_WIDTH) for cell in padded).rstrip()


def _markdown_row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")
