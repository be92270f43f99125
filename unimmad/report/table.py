"""A table and its forms: text for a screen, Markdown, LaTeX (by the rules of booktabs) and CSV; the page has HTML's.

Datasets, classes and files may be called anything, so each form escapes what its readers would take for more than text.
"""

from __future__ import annotations

import csv
import html
import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from unimmad.metrics.metrics import METRIC_KEYS

MARK = "*"
"""Behind a number: a footnote says more of it."""
BEST_MARK = "^"
"""On a screen, behind the best number, which is bold elsewhere."""
WIDTH = 80
"""Characters in a line of the screen."""
_CELL_WIDTH = 6
"""Of the shortest column of numbers: three decimals and a mark or a sign."""
_LEAST_NAME_WIDTH = 16

_STARTS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # noqa: RUF001 (as wide letters too)
_LATEX = {
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

Row = Sequence[str]


class Strong(str):
    """A cell in bold, such as a mean's. Text has no bold: there such a name stands without the indent of its group."""

    def __html__(self) -> str:
        """What a template that escapes takes as it is."""
        return f"<b>{html.escape(self)}</b>"


class Best(Strong):
    """The best number of a column, in bold; in text it has a mark."""


@dataclass(frozen=True)
class Table:
    """Rows of words and numbers, every cell as text."""

    heads: Row
    rows: Sequence[Row]
    names: int = 1
    """How many columns on the left say what a row is. Of two, text and LaTeX show the first as a heading above its
    rows."""
    caption: str = ""
    notes: Sequence[str] = ()

    def to_text(self) -> str:
        """For a screen, in 80 columns where the numbers leave room for names; a long name has a line of its own."""
        columns = _Columns(self)
        lines = [*textwrap.wrap(self.caption, WIDTH), ""] if self.caption else []
        lines += [*columns.heads(self.heads[self.names - 1 :]), columns.rule]
        for number, (heading, rows) in enumerate(self._groups()):
            if number:
                lines.append("" if heading else columns.rule)
            lines += [heading] if heading else []
            for name, *numbers in rows:
                indent = "  " if heading and not isinstance(name, Strong) else ""
                lines.append(columns.line(indent + name, numbers))
        return "\n".join([*lines, *wrapped(self.notes)]) + "\n"

    def to_markdown(self) -> str:
        """Padded, so that the source reads as a table too."""
        heads, *rows = ([_markdown_cell(cell) for cell in row] for row in (self.heads, *self.rows))
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        rule = ["-" * width if n < self.names else "-" * max(1, width - 1) + ":" for n, width in enumerate(widths)]
        sides = [str.ljust if n < self.names else str.rjust for n in range(len(widths))]
        lines = [
            f"| {' | '.join(pad(cell, width) for pad, cell, width in zip(sides, row, widths, strict=True))} |"
            for row in (heads, rule, *rows)
        ]
        above = [markdown_escaped(self.caption), ""] if self.caption else []
        below = [line for note in self.notes for line in ("", markdown_escaped(note))]
        return "\n".join([*above, *lines, *below]) + "\n"

    def to_latex(self) -> str:
        """A ``tabular``, its caption and notes as comments above it. Needs ``\\usepackage{booktabs}``."""
        lines = [f"% {one_line(text)}" for text in (self.caption, *self.notes) if text]
        numbers = len(self.heads) - self.names
        lines += [rf"\begin{{tabular}}{{l{'r' * numbers}}}", r"\toprule", _latex_row(self.heads[self.names - 1 :])]
        for heading, rows in self._groups():
            lines.append(r"\midrule")
            if heading:
                lines.append(rf"\multicolumn{{{numbers + 1}}}{{l}}{{{latex_escaped(heading)}}} \\")
            lines += [(r"\quad " if heading else "") + _latex_row(row) for row in rows]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def to_csv(self) -> str:
        """Heads and rows alone; what a spreadsheet would execute has an apostrophe before it (see :func:`harmless`)."""
        text = io.StringIO()
        rows = ([harmless(cell) for cell in row] for row in (self.heads, *self.rows))
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue()

    def _groups(self) -> Iterator[tuple[str, list[Row]]]:
        """Each heading with its rows, these from the last column of names on."""
        for heading, rows in groupby(self.rows, key=lambda row: row[0] if self.names > 1 else ""):
            yield heading, [row[self.names - 1 :] for row in rows]


class _Columns:
    """How wide a table's columns are on a screen, and lines in them; numbers align with and without a mark."""

    def __init__(self, table: Table) -> None:
        numbers = [[_marked(cell) for cell in row[table.names :]] for row in table.rows]
        self._any_mark = any(_has_mark(cell) for row in numbers for cell in row)
        heads = map(_short, table.heads[table.names :])
        columns = zip(heads, *(map(self._placed, row) for row in numbers), strict=True)
        self._widths = [1 + max(_CELL_WIDTH, *map(len, column)) for column in columns]
        self._name_width = max(_LEAST_NAME_WIDTH, WIDTH - sum(self._widths))
        self.rule = "-" * (self._name_width + sum(self._widths))

    def line(self, name: str, numbers: Row) -> str:
        between = "\n" + " " * self._name_width if len(name) >= self._name_width else ""
        aligned = map(str.rjust, map(self._placed, map(_marked, numbers)), self._widths)
        return (name + between).ljust(self._name_width) + "".join(aligned).rstrip()

    def heads(self, heads: Row) -> Iterator[str]:
        """One line; above it, where there are metrics, one that says which are of images and which of pixels."""
        levels = [
            "" if head not in METRIC_KEYS else "image" if head.startswith("I-") else "pixel" for head in heads[1:]
        ]
        if any(levels):
            spans = groupby(zip(levels, self._widths, strict=True), key=lambda column: column[0])
            widths = ((level, sum(width for _, width in columns)) for level, columns in spans)
            texts = (f"  {f' {level} '.center(width - 2, '-')}" if level else " " * width for level, width in widths)
            yield " " * self._name_width + "".join(texts)
        yield self.line(heads[0], [_short(head) for head in heads[1:]])

    def _placed(self, cell: str) -> str:
        """With the place for a mark kept free behind it, where other numbers have one."""
        return cell if not self._any_mark or _has_mark(cell) or len(cell) == _CELL_WIDTH else f"{cell} "


def _marked(cell: str) -> str:
    """As text shows a number."""
    return f"{cell}{BEST_MARK}" if isinstance(cell, Best) else cell


def _has_mark(cell: str) -> bool:
    return cell.endswith((MARK, BEST_MARK))


def harmless(cell: object) -> object:
    """The cell itself, or as text behind an apostrophe where a spreadsheet would take it for a formula.

    Datasets, classes and files may be called anything, ``=HYPERLINK(...)`` included. Numbers stay as they are.
    """
    if not isinstance(cell, str) or _is_number(cell):
        return cell
    marked = f"'{cell}" if cell.startswith(_STARTS_A_FORMULA) else cell
    return marked.replace("\r", " ")  # csv does not quote it, and readers end the row there


def markdown_escaped(text: str) -> str:
    """``text`` for a line or a table's cell of Markdown: no HTML, link, bold or code, no end of the cell or line."""
    return re.sub(r"([\\|\[\]`*])", r"\\\1", html.escape(" ".join(text.splitlines()), quote=False))


def latex_escaped(text: str) -> str:
    """``text`` with LaTeX's special characters as themselves; what cannot be printed is left out."""
    return "".join(_LATEX.get(letter, letter) for letter in one_line(text) if letter.isprintable())


def one_line(text: str) -> str:
    return " ".join(text.split())


def wrapped(texts: Sequence[str], indent: int = 2) -> Iterator[str]:
    """Lines of at most 80 columns, unless a word is longer; a text's further lines are indented."""
    for text in texts:
        yield from textwrap.wrap(
            text, WIDTH, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        )


def _markdown_cell(cell: str) -> str:
    return f"**{markdown_escaped(cell)}**" if isinstance(cell, Strong) else markdown_escaped(cell)


def _latex_row(row: Row) -> str:
    """A name, whose last letter is never a mark, and numbers."""
    name, *numbers = row
    texts = [latex_escaped(name), *(latex_escaped(n.removesuffix(MARK)) + "$^*$" * n.endswith(MARK) for n in numbers)]
    cells = (rf"\textbf{{{text}}}" if isinstance(cell, Strong) else text for cell, text in zip(row, texts, strict=True))
    return " & ".join(cells) + r" \\"


def _short(head: str) -> str:
    """A metric's name without what the line above it says."""
    return head.removeprefix("I-").removeprefix("P-").replace("AUPRO-", "PRO-") if head in METRIC_KEYS else head


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
