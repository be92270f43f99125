"""A report's tables: for the screen, and its files: Markdown, CSV, JSON, LaTeX, and the image scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.at_threshold import at_threshold_csv, at_threshold_table
from unimmad.report.formatting import NOT_PUBLISHED, cells, coverage, footnotes, mean_cells
from unimmad.report.report import Mean, Report, to_json
from unimmad.report.scored_class import ScoredClass
from unimmad.report.table import Row, Strong, Table, markdown_escaped, one_line, wrapped
from unimmad.serialization.atomic_write import write_text_aside

IMAGE_SCORES = "image_scores.csv"
AT_THRESHOLD = "at_threshold.csv"


def screen_table(report: Report) -> str:
    """The report for a terminal, in 80 columns: header, one row a class, the means, footnotes; 3 decimals."""
    width = max(map(len, report.header), default=0) + 2
    header = list(wrapped([f"{key + ':':<{width}}{value}" for key, value in report.header.items()], width))
    headings = {result.dataset: f"{result.dataset} ({result.field})" for result in report.classes}
    rows = [(headings.get(row[0], ""), row[1], *row[4:]) for row in _rows(report, published="published")]
    table = Table(("dataset", "class", *METRIC_KEYS), rows, names=2, notes=footnotes(report))
    at_threshold = at_threshold_table(report)
    below = [] if at_threshold is None else [at_threshold.to_text()]
    return "\n".join([*header, *[""][: len(header)], table.to_text(), *below])


def markdown_table(report: Report) -> str:
    """The report as Markdown: header as a list, a table with the counts of images, footnotes."""
    header = [f"- {markdown_escaped(key)}: {markdown_escaped(value)}" for key, value in report.header.items()]
    heads = ("dataset", "class", "normal", "anomalous", *METRIC_KEYS)
    table = Table(heads, list(_rows(report)), names=2, notes=footnotes(report))
    at_threshold = at_threshold_table(report)
    below = [] if at_threshold is None else [at_threshold.to_markdown()]
    return "\n".join([*header, "", table.to_markdown(), *below])


def latex_table(report: Report) -> str:
    """The report as a LaTeX table; header and footnotes stand in comments above it."""
    header = [f"% {one_line(f'{key}: {value}')}\n" for key, value in report.header.items()]
    # Bold would say that the means are the best.
    rows = [tuple(str(cell) for cell in (*row[:2], *row[4:])) for row in _rows(report)]
    table = Table(("dataset", "class", *METRIC_KEYS), rows, names=2, notes=footnotes(report))
    at_threshold = at_threshold_table(report)
    below = [] if at_threshold is None else ["\n", at_threshold.to_latex()]
    return "".join([*header, table.to_latex(), *below])


def csv_table(report: Report) -> str:
    """The report as CSV: one row a class or mean, full precision, ``n/a`` where undefined.

    ``row`` is ``class`` or the mean's name; ``note`` says which metrics of a mean cover fewer members.
    """
    rows: list[Row] = []
    for result in report.classes:
        names = (result.dataset, result.field, result.class_name, str(result.normal), str(result.anomalous))
        rows.append(("class", *names, *cells(result.metrics, form=repr), ""))
    for mean in report.means():
        rows.append((mean.name, "", "", "", "", "", *cells(mean.metrics, form=repr), coverage(mean)))
    for row in report.published:
        numbers = cells(row.metrics, undefined="", form=repr)
        rows.append(("published", row.dataset, "", row.name, "", "", *numbers, f"{row.source}. {row.note}"))
    heads = ("row", "dataset", "field", "class", "normal", "anomalous", *METRIC_KEYS, "note")
    return Table(heads, rows).to_csv()


def write_tables(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write report.json, report.csv, report.md and report.tex, and with thresholds at_threshold.csv, into ``folder``
    (made if missing); gives their paths.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    contents = {
        "report.json": to_json(report),
        "report.csv": csv_table(report),
        "report.md": markdown_table(report),
        "report.tex": latex_table(report),
    }
    if at_threshold_table(report) is not None:
        contents[AT_THRESHOLD] = at_threshold_csv(report)
    for name, content in contents.items():
        write_text_aside(folder / name, content)
    if AT_THRESHOLD not in contents:  # an earlier report's
        (folder / AT_THRESHOLD).unlink(missing_ok=True)
    return tuple(folder / name for name in contents)


def write_image_scores(
    scored_classes: Sequence[ScoredClass], folder: Path, sources: Mapping[tuple[str, str], str | None] | None = None
) -> Path:
    """Write image_scores.csv: one row a sample, full precision; gives its path.

    ``sources``: the file that a sample was made from, where it is known, by dataset and key.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    rows: list[Row] = []
    for scored in scored_classes:
        names = scored.result.dataset, scored.result.class_name
        samples = zip(scored.keys, scored.defects, scored.labels, scored.image_scores, strict=True)
        rows += [
            (*names, key, defect, str(int(label)), repr(float(score)), (sources or {}).get((names[0], key)) or "")
            for key, defect, label, score in samples
        ]
    path = folder / IMAGE_SCORES
    write_text_aside(path, Table(("dataset", "class", "key", "defect", "anomalous", "score", "source"), rows).to_csv())
    return path


def _rows(report: Report, published: str = "published: {}") -> Iterator[Row]:
    """Dataset, name, counts of images, metrics: of each class, below them their dataset's mean and what is published
    for it (``published`` with the row's name), and last the means of all, without a dataset."""
    for dataset in report.datasets:
        for result in report.classes_of(dataset):
            counts = (str(result.normal), str(result.anomalous))
            yield dataset, result.class_name, *counts, *cells(result.metrics)
        yield _mean_row(dataset, report.mean_of_dataset(dataset))
        for row in report.published_of(dataset):
            yield dataset, published.format(row.name), "", "", *cells(row.metrics, NOT_PUBLISHED)
    for mean in report.means_of_all():
        yield _mean_row("", mean)


def _mean_row(dataset: str, mean: Mean) -> Row:
    return dataset, Strong(mean.name), "", "", *map(Strong, mean_cells(mean))
