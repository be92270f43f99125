"""Tables as CSV that a spreadsheet shows and does not execute."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

_STARTS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001 (as wide letters too)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV; what would start a formula has an apostrophe before it (see :func:`harmless`)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([harmless(cell) for cell in row] for row in rows)
    return text.getvalue()


def harmless(cell: object) -> object:
    """The cell itself, or as text behind an apostrophe where a spreadsheet would take it for a formula.

    Datasets, classes and files may be called anything, ``=HYPERLINK(...)`` included. Numbers stay as they are.
    """
    if not isinstance(cell, str) or _is_number(cell):
        return cell
    marked = f"'{cell}" if cell.startswith(_STARTS_A_FORMULA) else cell
    return marked.replace("\r", " ")  # csv does not quote it, and readers end the row there


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
