"""Tables of text that list samples: CSV with a header, and JSON lines."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unimmad.serialization.documents import parse_json, read_limited
from unimmad.serialization.text import listed

MAX_TABLE_BYTES = 2**30
MAX_COLUMNS = 256
"""Of a table, used or not."""


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    where: str
    """File and line, for messages."""
    cells: dict[str, str]
    """By column; empty cells are absent."""

    def need(self, column: str) -> str:
        """The cell in ``column``; ValueError where it is empty."""
        if column not in self.cells:
            raise ValueError(f"{self.where}: {column} is empty; fill it in")
        return self.cells[column]


def read_rows(path: Path, required: Sequence[str]) -> list[Row]:
    """Read a CSV (comma, with a header) or a JSON-lines file (``.jsonl``: one object of strings a line).

    Raises:
        ValueError: not readable as such, a required column is missing, there are more than ``MAX_COLUMNS``, a cell
            holds what is not text, or there is no row.
    """
    try:
        text = read_limited(path, MAX_TABLE_BYTES).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if "\0" in text:  # every second byte of UTF-16
        raise ValueError(f"{path}: is not UTF-8 text; save it as UTF-8")
    rows = list(_json_lines(path, text) if path.suffix.lower() == ".jsonl" else _csv_rows(path, text, required))
    if not rows:
        raise ValueError(f"{path}: lists no sample")
    for row in rows:
        for column in required:
            row.need(column)
    return rows


def existing(path: Path, row: Row) -> Path:
    """``path``; ValueError where there is no such file."""
    try:
        found = path.is_file()
    except OSError as error:
        raise ValueError(f"{row.where}: {path} cannot be read ({error.strerror})") from None
    if not found:
        raise ValueError(f"{row.where}: {path} does not exist")
    return path


def _csv_rows(path: Path, text: str, required: Sequence[str]) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        table = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: is not CSV ({error})") from None
    header = [name.strip() for name in table[0][1]] if table else []
    if missing := [column for column in required if column not in header]:
        named = listed(header) or "(none)"
        raise ValueError(f"{path}: has no column {' and '.join(missing)}; its first line names the columns {named}")
    _check_columns(path, len(header))
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: its first line names a column twice: {listed(header)}")
    for number, cells in table[1:]:
        if not any(cell.strip() for cell in cells):
            continue
        where = f"{path}, line {number}"
        if len(cells) != len(header):
            raise ValueError(
                f"{where}: {len(cells)} cells under {len(header)} columns; quote cells that contain commas"
            )
        yield _row(where, dict(zip(header, cells, strict=True)))


def _json_lines(path: Path, text: str) -> Iterator[Row]:
    columns: set[str] = set()
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        cells = parse_json(line, f"{where}:")
        if not isinstance(cells, dict) or not all(isinstance(value, str | None) for value in cells.values()):
            raise ValueError(f"{where}: wanted one JSON object whose values are strings or null")
        columns.update(cells)
        _check_columns(path, len(columns))
        yield _row(where, {name: value or "" for name, value in cells.items()})


def _row(where: str, cells: dict[str, str]) -> Row:
    filled = {name: value.strip() for name, value in cells.items() if value.strip()}
    for name, value in filled.items():
        if not value.isprintable() and any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
            raise ValueError(f"{where}: {name} holds a control character or half a letter: {value!a}")
    return Row(where, filled)


def _check_columns(path: Path, count: int) -> None:
    if count > MAX_COLUMNS:
        raise ValueError(f"{path}: has {count} columns; at most {MAX_COLUMNS} are read")
