"""The report as one HTML page: header, tables, pictures. It opens from a file, without network or scripts.

Pictures stay files of their own beside the page, so that a page of many classes opens at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.formatting import cells, footnotes, mean_cells, published_cells
from unimmad.report.report import ClassResult, Mean, PublishedRow, Report
from unimmad.serialization.atomic_write import write_text_aside

TITLE = "UniMMAD evaluation"


@dataclass(frozen=True)
class Picture:
    """A PNG file that is there, and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Table:
    """A table of words and numbers; the first column names the row."""

    caption: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """A part of the page that is no class: the experts, say."""

    name: str
    text: str
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def save_page(
    report: Report,
    path: Path,
    *,
    class_pictures: Mapping[tuple[str, str], Sequence[Picture]],
    overview: Path | None = None,
    sections: Sequence[Section] = (),
    files: Sequence[Path] = (),
) -> None:
    """Write the page.

    Args:
        report: its header and numbers.
        path: the page; links to pictures and files are relative to its folder.
        class_pictures: by dataset and class.
        overview: a picture of all classes.
        sections: follow the classes.
        files: other forms of the report, linked under the header.

    Raises:
        ValueError: the folder cannot be written to.
    """
    writer = _Page(path.parent)
    body = [
        f"<header><h1>{TITLE}</h1>",
        _header(report.header),
        writer.links(files),
        "</header>",
        _contents(report, sections),
        '<section id="results"><h2>Results</h2>',
        _results(report),
        "</section>",
    ]
    if overview is not None:
        caption = "One anomalous sample of each class with the contour of its mask, and its anomaly map."
        body += ['<section id="overview"><h2>Overview</h2>', writer.picture(Picture(overview, caption)), "</section>"]
    for result in report.classes:
        body += writer.class_section(result, class_pictures.get((result.dataset, result.class_name), ()))
    for section in sections:
        body += writer.section(section)
    write_text_aside(path, _DOCUMENT.format(title=TITLE, style=_STYLE, body="\n".join(body)))


class _Page:
    """Writes what links to files, relative to the page's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def picture(self, picture: Picture) -> str:
        """Scaled down to the page's width; a click opens it in full."""
        link, caption = self._link(picture.path), escape(picture.caption)
        # The size reserves the place of a picture not loaded yet: else a jump to a section would miss it.
        with Image.open(picture.path) as opened:
            size = f'width="{opened.width}" height="{opened.height}"'
        image = f'<img src="{link}" alt="{caption}" {size} loading="lazy">'
        return f'<figure><a href="{link}">{image}</a><figcaption>{caption}</figcaption></figure>'

    def links(self, files: Sequence[Path]) -> str:
        if not files:
            return ""
        links = (f'<a href="{self._link(file)}">{escape(file.name)}</a>' for file in files)
        return f'<p class="files">Files: {" &middot; ".join(links)}</p>'

    def class_section(self, result: ClassResult, pictures: Sequence[Picture]) -> Iterable[str]:
        counts = f"{result.normal} normal and {result.anomalous} anomalous test images, {escape(result.field)}"
        yield f'<section id="{_anchor(result)}"><h2>{escape(result.dataset)} / {escape(result.class_name)}</h2>'
        yield f'<p>{counts}. <a href="#results">Back to the results</a></p>'
        values = zip(METRIC_KEYS, cells(result.metrics), strict=True)
        yield f'<p class="metrics">{"".join(f"<span>{key} <b>{value}</b></span>" for key, value in values)}</p>'
        for picture in pictures:
            yield self.picture(picture)
        yield "</section>"

    def section(self, section: Section) -> Iterable[str]:
        yield f'<section id="{_identifier(section.name)}"><h2>{escape(section.name)}</h2>'
        yield f"<p>{escape(section.text)}</p>"
        for picture in section.pictures:
            yield self.picture(picture)
        for table in section.tables:
            yield _table(table)
        yield from (f"<p>{escape(note)}</p>" for note in section.notes)
        yield self.links(section.files)
        yield "</section>"

    def _link(self, path: Path) -> str:
        return escape(quote(Path(os.path.relpath(path, self._folder)).as_posix()))


def _header(header: Mapping[str, str]) -> str:
    entries = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in header.items())
    return f"<dl>{entries}</dl>" if entries else ""


def _contents(report: Report, sections: Sequence[Section]) -> str:
    """Links to every class, one line a dataset, and to the other sections."""
    lines = []
    for dataset in report.datasets:
        links = (f'<a href="#{_anchor(r)}">{escape(r.class_name)}</a>' for r in report.classes_of(dataset))
        lines.append(f"<li><b>{escape(dataset)}</b> {' '.join(links)}</li>")
    lines += [f'<li><a href="#{_identifier(s.name)}">{escape(s.name)}</a></li>' for s in sections]
    return f"<nav><ul>{''.join(lines)}</ul></nav>"


def _results(report: Report) -> str:
    """One row a class, each dataset's mean and published rows, the means of all; darker is better."""
    heads = "".join(f"<th>{key}</th>" for key in METRIC_KEYS)
    lines = [f"<table><thead><tr><th>class</th><th>normal</th><th>anomalous</th>{heads}</tr></thead><tbody>"]
    for dataset in report.datasets:
        for result in report.classes_of(dataset):
            name = f'<a href="#{_anchor(result)}">{escape(dataset)} / {escape(result.class_name)}</a>'
            counts = f"<td>{result.normal}</td><td>{result.anomalous}</td>"
            lines.append(f"<tr><th>{name}</th>{counts}{_shaded(result.metrics, cells(result.metrics))}</tr>")
        lines.append(_mean_row(report.mean_of_dataset(dataset)))
        lines += [_published_row(row) for row in report.published_of(dataset)]
    lines += [*map(_mean_row, report.means_of_all()), "</tbody></table>"]
    lines += [f"<p>{escape(note)}</p>" for note in footnotes(report)]
    return "\n".join(lines)


def _mean_row(mean: Mean) -> str:
    shaded = _shaded(mean.metrics, mean_cells(mean))
    return f'<tr class="mean"><th>{escape(mean.name)}</th><td></td><td></td>{shaded}</tr>'


def _published_row(row: PublishedRow) -> str:
    shaded = _shaded(row.metrics, published_cells(row))
    return f'<tr class="published"><th>published: {escape(row.name)}</th><td></td><td></td>{shaded}</tr>'


def _shaded(metrics: Mapping[str, float | None], texts: Sequence[str]) -> str:
    """The texts as table cells, shaded by the numbers."""
    by_key = zip(METRIC_KEYS, texts, strict=True)
    return "".join(f'<td style="background:{_shade(metrics[key])}">{text}</td>' for key, text in by_key)


def _shade(value: float | None) -> str:
    """White at 0.5 and less, a light blue at 1."""
    share = 0.0 if value is None else min(1.0, max(0.0, 2 * value - 1))
    return f"rgba(59,111,182,{0.35 * share:.3f})"


def _table(table: Table) -> str:
    heads = "".join(f"<th>{escape(head)}</th>" for head in table.heads)
    rows = (
        f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>"
        for row in table.rows
    )
    caption = f"<caption>{escape(table.caption)}</caption>"
    return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _anchor(result: ClassResult) -> str:
    return _identifier(f"class {result.dataset}/{result.class_name}")


def _identifier(name: str) -> str:
    """``name`` as an HTML id: other signs become their code, so that no two names meet."""
    return re.sub(r"[^A-Za-z0-9]", lambda sign: "-" if sign[0] in " -" else f"_{ord(sign[0]):x}_", name)


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 1180px; margin: 0 auto;
  padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.6rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; border-top: 1px solid #ddd; padding-top: 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0; }
dt { color: #666; } dd { margin: 0; overflow-wrap: anywhere; }
nav ul { list-style: none; padding: 0; } nav a { margin-right: .7rem; } a { color: #1f5fa8; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; margin: .6rem 0 1.2rem; }
caption { text-align: left; color: #444; padding-bottom: .3rem; }
th, td { padding: .2rem .55rem; text-align: right; border-bottom: 1px solid #eee; white-space: nowrap; }
th:first-child { text-align: left; font-weight: normal; } thead th { border-bottom: 1px solid #999; font-weight: 600; }
tr.published th, tr.published td { font-style: italic; border-bottom: 1px solid #bbb; }
tr.mean th, tr.mean td { font-weight: 600; border-bottom: 1px solid #bbb; }
.metrics span { display: inline-block; margin-right: 1.1rem; color: #555; } .metrics b { color: #111; }
figure { margin: .8rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: .87rem; }
section { overflow-x: auto; }
"""
_DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
