r"""A report as LaTeX: one ``tabular`` with the rules of the booktabs package, to be put into a paper's ``table``."""

from __future__ import annotations

from collections.abc import Sequence

from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.formatting import cells, footnotes, mean_cells, published_cells
from unimmad.report.report import Report

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
