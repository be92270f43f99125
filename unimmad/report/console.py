"""A report for the screen: 80 columns, 3 decimals."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from unimmad.report.formatting import PARTIAL, cells, footnotes, mean_cells, published_cells
from unimmad.report.report import Mean, Report

WIDTH = 80
_NAME_WIDTH = 24
_CELL_WIDTH = 7
_GROUPS = (("image", 3), ("pixel", 5))
_HEADS = ("AUROC", "AP", "F1max", "AUROC", "AP", "F1max", "AUPRO", "PRO-99")

Group = tuple[str, Sequence[tuple[str, Sequence[str]]]]
"""A heading and its rows, each a name and eight cells."""


def screen_table(report: Report) -> str:
    """The report for a terminal: header, one row a class, the means, footnotes; 3 decimals."""
    lines = [*_screen_header(report), *_screen_heads(), "-" * WIDTH]
    for dataset in report.datasets:
        classes = report.classes_of(dataset)
        lines.append(f"{dataset} ({classes[0].field})")
        for result in classes:
            lines += _screen_row(f"  {result.class_name}", cells(result.metrics))
        lines += _screen_mean(report.mean_of_dataset(dataset))
        for row in report.published_of(dataset):
            lines += _screen_row("  published", published_cells(row))
        lines.append("")
    lines[-1] = "-" * WIDTH
    for mean in report.means_of_all():
        lines += _screen_mean(mean)
    return "\n".join([*lines, *_wrapped(footnotes(report))]) + "\n"


def grouped_table(title: str, groups: Sequence[Group], notes: Sequence[str], first: str = "class") -> str:
    """Rows of eight cells under headings, for tables that are no report; ``first`` is the head of the names."""
    lines = [*textwrap.wrap(title, WIDTH), "", *_screen_heads(first), "-" * WIDTH]
    for heading, rows in groups:
        lines += [heading] if heading else []
        for name, row_cells in rows:
            lines += _screen_row(f"  {name}" if heading else name, row_cells)
    return "\n".join([*lines, *_wrapped(notes)]) + "\n"


def _wrapped(notes: Sequence[str]) -> Iterator[str]:
    for note in notes:
        yield from textwrap.wrap(note, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _screen_header(report: Report) -> Iterator[str]:
    width = max((len(key) for key in report.header), default=0)
    for key, value in report.header.items():
        indent = " " * (width + 2)
        yield from textwrap.wrap(
            f"{key + ':':<{width + 2}}{value}", WIDTH, subsequent_indent=indent, break_long_words=False
        )
    if report.header:
        yield ""


def _screen_heads(first: str = "class") -> Iterator[str]:
    groups = (f" {name} ".center(_CELL_WIDTH * columns - 2, "-") for name, columns in _GROUPS)
    yield " " * _NAME_WIDTH + "".join(f"  {group}" for group in groups)
    yield first.ljust(_NAME_WIDTH) + _aligned(_HEADS)


def _screen_mean(mean: Mean) -> Iterator[str]:
    yield from _screen_row(mean.name, mean_cells(mean))


def _screen_row(name: str, row_cells: Sequence[str]) -> Iterator[str]:
    """One line, or two where the name is too long for its column."""
    if len(name) >= _NAME_WIDTH:
        yield name
        name = ""
    yield name.ljust(_NAME_WIDTH) + _aligned(row_cells)


def _aligned(row_cells: Sequence[str]) -> str:
    """Right-aligned, with the place for a mark kept free behind each number."""
    padded = (cell if cell.endswith(PARTIAL) or len(cell) == _CELL_WIDTH - 1 else f"{cell} " for cell in row_cells)
    return "".join(cell.rjust(_CELL_WIDTH) for cell in padded).rstrip()
