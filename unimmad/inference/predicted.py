"""Predictions as they lie in a folder, for people who look at them: each by its name, with class, score and files; and
what they say of them, ``decisions.csv``: a line with name and decision each, and with a digest of the predictions where
``unimmad review`` wrote it, since names are used again."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, get_args

from pydantic import Field, ValidationError

from unimmad.checkpoint.feedback import Decision
from unimmad.inference.output import LINES_NAME, PARTIAL_NAME
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.documents import read_limited
from unimmad.serialization.text import listed, one_line, shown
from unimmad.serialization.validation import Entry, first_problem

DECISIONS_NAME = "decisions.csv"
COLUMNS = ("name", "decision")
OF_PREDICTIONS = "predictions"
"""A third column that may be there: ``predictions_digest``."""
DECISIONS: tuple[Decision, ...] = get_args(Decision)
MOST_BYTES = 2**30
"""Of a file of predictions: two million lines are shorter."""
MOST_NAMES = 3


class Predicted(Entry):
    """What a line of ``predictions.jsonl`` says, as far as it matters here."""

    name: str
    class_name: Annotated[str | None, Field(alias="class")]
    modalities: Annotated[list[str], Field(min_length=1)]
    score: float
    threshold: float | None
    anomalous: bool | None
    files: dict[str, str]
    notes: list[str] = Field(default_factory=list)
    picture: str | None = None


def read_predictions(folder: Path) -> dict[str, Predicted]:
    """All of a folder that ``unimmad predict`` wrote, by name, in their order.

    Raises:
        ValueError: there are none, they are not finished, a line is none, or a name is there twice.
    """
    path = folder / LINES_NAME
    if not path.is_file():
        if (folder / PARTIAL_NAME).is_file():
            raise ValueError(f"{folder} holds an interrupted prediction: let the same unimmad predict finish it first")
        raise ValueError(f"{path} does not exist; name the folder that unimmad predict wrote")
    found: dict[str, Predicted] = {}
    try:
        lines = read_limited(path, MOST_BYTES).splitlines()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        try:
            one = Predicted.model_validate_json(line)
        except ValidationError as error:
            raise ValueError(
                f"{path} line {number}: not a prediction ({first_problem(error)}); predict again"
            ) from None
        if one.name in found:
            raise ValueError(f"{path} line {number}: {shown(one.name)} is there twice; predict again")
        found[one.name] = one
    if not found:
        raise ValueError(f"{path} is empty: it holds no prediction")
    return found


def predictions_digest(folder: Path) -> str:
    """By which decisions know the predictions that they are of; empty where there are none.

    Raises:
        ValueError: they can't be read.
    """
    path = folder / LINES_NAME
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None


def read_decisions(path: Path, folder: Path, of_review: bool = False) -> dict[str, Decision]:
    """What a table says of each name of the predictions in a folder; with ``of_review`` it must say that it is of them.

    Raises:
        ValueError: it is another table, or of other predictions, or says two things of one name.
    """
    try:
        text = read_limited(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8: save it as CSV in UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise ValueError(f"{path} is not CSV: {error}") from None
    columns = [tuple(cell.strip() for cell in row) for row in rows[:1]]
    if columns == [(*COLUMNS, OF_PREDICTIONS)]:
        of = predictions_digest(folder)
        if of and any(row[2:] != [of] for row in rows[1:]):
            raise ValueError(
                f"{path} is of other predictions than those that {folder} holds by now, move it away: the names may be "
                "the same, the images and scores are others"
            )
        rows = [row[:2] for row in rows]
    elif columns == [COLUMNS] and of_review:
        raise ValueError(
            f"{path} does not say which predictions it is of, so unimmad review did not write it: move it away "
            "(unimmad feedback --csv takes it)"
        )
    elif columns != [COLUMNS]:
        raise ValueError(f"{path}: its first line must be {','.join(COLUMNS)}")
    found: dict[str, Decision] = {}
    for number, row in enumerate(rows[1:], start=2):
        decision = next((known for known in DECISIONS if [known] == [cell.strip() for cell in row[1:]]), None)
        if decision is None:
            raise ValueError(f"{path}, row {number}: {shown(','.join(row))} is not a name and {' or '.join(DECISIONS)}")
        if found.setdefault(row[0], decision) != decision:
            raise ValueError(f"{path}, row {number}: {shown(row[0])} is called both {' and '.join(DECISIONS)}")
    return found


def save_decisions(decisions: Mapping[str, Decision], path: Path, of: str) -> None:
    """Write such a table.

    Args:
        decisions: by name.
        path: of the table.
        of: ``predictions_digest`` of what they are of.

    Raises:
        ValueError: it can't be written.
    """
    text = io.StringIO(newline="")
    rows = [(*said, of) for said in decisions.items()]
    csv.writer(text, lineterminator="\n").writerows([(*COLUMNS, OF_PREDICTIONS), *rows])
    write_text_aside(path, text.getvalue())


def check_known(names: Iterable[str], predictions: Mapping[str, Predicted], folder: Path) -> None:
    """
    Raises:
        ValueError: a name is not among the predictions; says which come near.
    """
    unknown = [name for name in names if name not in predictions]
    if unknown:
        near = get_close_matches(unknown[0], predictions, n=1) or list(predictions)[:1]
        others = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise ValueError(
            f"{one_line(unknown[0])}{others} is none of the {len(predictions)} predictions in {folder}: names are "
            f"those of {LINES_NAME}, such as {one_line(near[0])}"
        )


def some(names: Iterable[str]) -> str:
    """A few names for a message."""
    return listed([one_line(name, 80) for name in names], MOST_NAMES)
