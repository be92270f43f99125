"""What was read from a file, held against a pydantic model; what does not fit is said in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

Count = Annotated[int, Field(ge=0, lt=2**53)]
"""What JSON's readers all take for the same number."""

Share = Annotated[float, Field(ge=0, le=1 + 1e-9)]
"""Sums of floats may end a rounding above 1."""


class Entry(BaseModel):
    """One JSON object: types as they are written, no NaN; keys that are not known are passed over."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


T = TypeVar("T")


def validated(schema: TypeAdapter[T], values: Any, origin: str, remedy: str) -> T:
    """Parsed JSON as what ``schema`` describes; ``origin`` names the file, ``remedy`` says what to do.

    Raises:
        ValueError: it does not fit.
    """
    try:
        return schema.validate_python(values)
    except ValidationError as error:
        raise ValueError(f"{origin}: {first_problem(error)}; {remedy}") from None


def first_problem(error: ValidationError) -> str:
    """``shards.0.name: String should match pattern ...``, in one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(one_line(part, 80) for part in first["loc"]) or "the file"
    return f"{where}: {one_line(first['msg'].removeprefix('Value error, '))}"


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names for a message, with commas; of many only the first ``most``, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def printable(text: str) -> str:
    """``text`` with what would steer a terminal, break a line or is no UTF-8 escaped: names may hold anything."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def one_line(text: object, most_letters: int = 800) -> str:
    """For messages that hold a file's words: no letter that breaks a line or steers a terminal, and not endless."""
    shown = str(text) if str(text).isprintable() else ascii(text)
    return shown if len(shown) <= most_letters else f"{shown[:most_letters]}..."
