"""What was read from a file, held against a pydantic model; what does not fit is said in one line."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from unimmad.serialization.text import one_line

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
