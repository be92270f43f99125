"""A report's files: Markdown, CSV, JSON, LaTeX (one ``tabular`` by the rules of booktabs), and the image scores."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path

from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.csv_text import csv_text
from unimmad.report.formatting import PARTIAL, cells, coverage, exact_cells, footnotes, mean_cells, published_cells
from unimmad.report.report import Report, to_json
from unimmad.report.scored_class import ScoredClass
from unimmad.serialization.atomic_write import write_text_aside

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    # At the start of a row these would be an option of the line break that ends the row above.
    **{letter: f"{{{letter}}}" for letter in "*["},
}


def latex_table(report: Report) -> str:
    """The report as LaTeX; header and footnotes stand in comments above it. Needs ``\\usepackage{booktabs}``."""
    facts = [f"{key}: {value}" for key, value in report.header.items()]
    lines = [f"% {_one_line(text)}" for text in (*facts, *footnotes(report))]
    lines += [r"\begin{tabular}{l" + "r" * len(METRIC_KEYS) + "}", r"\toprule", _row("class", METRIC_KEYS)]
    for dataset in report.datasets:
        lines += [r"\midrule", rf"\multicolumn{{{len(METRIC_KEYS) + 1}}}{{l}}{{{latex_escaped(dataset)}}} \\"]
        for result in report.classes_of(dataset):
            lines.append(_row(rf"\quad {latex_escaped(result.class_name)}", cells(result.metrics)))
        mean = report.mean_of_dataset(dataset)
        lines.append(_row(rf"\quad {latex_escaped(mean.name)}", mean_cells(mean, partial="$^*$")))
        for row in report.published_of(dataset):
            lines.append(_row(rf"\quad published: {latex_escaped(row.name)}", published_cells(row)))
    lines.append(r"\midrule")
    for mean in report.means_of_all():
        lines.append(_row(latex_escaped(mean.name), mean_cells(mean, partial="$^*$")))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def latex_escaped(text: str) -> str:
    """``text`` with LaTeX's special characters as themselves; what cannot be printed is left out."""
    return "".join(_SPECIAL.get(letter, letter) for letter in _one_line(text) if letter.isprintable())


def _row(name: str, row_cells: Sequence[str]) -> str:
    return " & ".join((name, *row_cells)) + r" \\"


def _one_line(text: str) -> str:
    return " ".join(text.split())


IMAGE_SCORES = "image_scores.csv"


def markdown_table(report: Report) -> str:
    """The report as Markdown: header as a list, a table with the counts of images, footnotes."""
    lines = [f"- {escaped(key)}: {escaped(value)}" for key, value in report.header.items()]
    heads = ("data set", "class", "normal", "anomalous", *METRIC_KEYS)
    lines += ["", markdown_row(heads), markdown_row(("---", "---", *["---:"] * (len(heads) - 2)))]
    for result in report.classes:
        names = (escaped(result.dataset), escaped(result.class_name))
        counts = (str(result.normal), str(result.anomalous))
        lines.append(markdown_row((*names, *counts, *cells(result.metrics))))
    for mean in report.means():
        bold = (f"**{cell}**" for cell in mean_cells(mean, partial=r"\*"))
        lines.append(markdown_row((f"**{escaped(mean.name)}**", "", "", "", *bold)))
    for row in report.published:
        lines.append(
            markdown_row((escaped(row.dataset), f"published: {escaped(row.name)}", "", "", *published_cells(row)))
        )
    for note in footnotes(report):
        lines += ["", escaped(note).replace(PARTIAL, r"\*", 1)]
    return "\n".join(lines) + "\n"


def csv_table(report: Report) -> str:
    """The report as CSV: one row a class or mean, full precision, ``n/a`` where undefined.

    ``row`` is ``class`` or the mean's name; ``note`` says which metrics of a mean cover fewer members.
    """
    rows: list[Sequence[object]] = [("row", "dataset", "field", "class", "normal", "anomalous", *METRIC_KEYS, "note")]
    for result in report.classes:
        names = (result.dataset, result.field, result.class_name, result.normal, result.anomalous)
        rows.append(("class", *names, *exact_cells(result.metrics), ""))
    for mean in report.means():
        rows.append((mean.name, "", "", "", "", "", *exact_cells(mean.metrics), coverage(mean)))
    for row in report.published:
        numbers = ("" if row.metrics[key] is None else repr(row.metrics[key]) for key in METRIC_KEYS)
        rows.append(("published", row.dataset, "", row.name, "", "", *numbers, f"{row.source}. {row.note}"))
    return csv_text(rows)


def write_tables(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write report.json, report.csv, report.md and report.tex into ``folder`` (made if missing); gives their paths.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    contents = {
        "report.json": to_json(report),
        "report.csv": csv_table(report),
        "report.md": markdown_table(report),
        "report.tex": latex_table(report),
    }
    for name, content in contents.items():
        write_text_aside(folder / name, content)
    return tuple(folder / name for name in contents)


def write_image_scores(scored_classes: Sequence[ScoredClass], folder: Path) -> Path:
    """Write image_scores.csv: one row a sample, full precision; gives its path.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    rows: list[Sequence[object]] = [("dataset", "class", "key", "defect", "anomalous", "score")]
    for scored in scored_classes:
        names = scored.result.dataset, scored.result.class_name
        samples = zip(scored.keys, scored.defects, scored.labels, scored.image_scores, strict=True)
        rows += [(*names, key, defect, int(label), repr(float(score))) for key, defect, label, score in samples]
    path = folder / IMAGE_SCORES
    write_text_aside(path, csv_text(rows))
    return path


def markdown_row(row_cells: Sequence[str]) -> str:
    return f"| {' | '.join(row_cells)} |"


def escaped(text: str) -> str:
    """``text`` for a line or a table's cell of Markdown: no HTML, link or code, no end of the cell or line."""
    return re.sub(r"([\\|\[\]`])", r"\\\1", html.escape(" ".join(text.splitlines()), quote=False))
