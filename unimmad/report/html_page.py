"""The report as one HTML page: header, tables, pictures. It opens from a file, without network or scripts.

Pictures stay files of their own beside the page, so that a page of many classes opens at once. What it looks like is
in ``templates/``, where every value is escaped.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.formatting import NOT_PUBLISHED, cells, footnotes, mean_cells
from unimmad.report.report import ClassResult, Report
from unimmad.report.table import Table
from unimmad.serialization.atomic_write import write_text_aside

OVERVIEW_CAPTION = "One anomalous sample of each class with the contour of its mask, and its anomaly map."


@dataclass(frozen=True)
class Picture:
    """A PNG file that is there, and what it shows."""

    path: Path
    caption: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the file."""
        with Image.open(self.path) as opened:
            return opened.size


@dataclass(frozen=True)
class Section:
    """A part of the page beside its classes: the experts, say."""

    name: str
    text: str
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    files: tuple[Path, ...] = ()


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
    page = render_page(
        "report.html.j2",
        path,
        report=report,
        class_pictures=class_pictures,
        overview=overview and Picture(overview, OVERVIEW_CAPTION),
        sections=sections,
        files=files,
    )
    write_text_aside(path, page)


def render_page(template: str, path: Path, **values: Any) -> str:
    """The HTML of a page that will lie at ``path``, to whose folder its links are relative."""
    return _ENVIRONMENT.get_template(template).render(
        **values, link=lambda file: quote(Path(os.path.relpath(file, path.parent)).as_posix())
    )


def _shade(value: float | None) -> str:
    """White at 0.5 and less, a light blue at 1."""
    share = 0.0 if value is None else min(1.0, max(0.0, 2 * value - 1))
    return f"rgba(59,111,182,{0.35 * share:.3f})"


def _anchor(result: ClassResult) -> str:
    return _identifier(f"class {result.dataset}/{result.class_name}")


def _identifier(name: str) -> str:
    """``name`` as an HTML id: other signs become their code, so that no two names meet."""
    return re.sub(r"[^A-Za-z0-9]", lambda sign: "-" if sign[0] in " -" else f"_{ord(sign[0]):x}_", name)


_ENVIRONMENT = Environment(
    loader=PackageLoader("unimmad.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.globals.update(keys=METRIC_KEYS, NOT_PUBLISHED=NOT_PUBLISHED)
_ENVIRONMENT.filters.update(
    anchor=_anchor, cells=cells, footnotes=footnotes, identifier=_identifier, mean_cells=mean_cells, shade=_shade
)
