"""What the sections of a recipe share: numbers that a recipe may hold, frozen sections without unknown keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no_truth_value(value: object) -> object:
    """Python, and so pydantic, counts ``true`` as 1."""
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


def off_or_from(smallest: float) -> Callable[[float], float]:
    """0, or ``smallest`` and more: less is 0 where it is computed with, and divides by it."""

    def check(value: float) -> float:
        if value != 0 and not value >= smallest:
            raise ValueError(f"Input should be 0 (off), or greater than or equal to {smallest:g}")
        return value

    return check


Integer = Annotated[int, BeforeValidator(_no_truth_value)]
Real = Annotated[float, BeforeValidator(_no_truth_value)]
Positive = Annotated[Integer, Field(gt=0)]
NotNegative = Annotated[Integer, Field(ge=0)]
Blocks = Annotated[Integer, Field(gt=0, le=256)]
"""Of a stage or a network: each is made before a checkpoint's tensors are looked for."""


class Section(BaseModel):
    """A part of a recipe: frozen, without unknown keys, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
