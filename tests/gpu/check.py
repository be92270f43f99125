"""What a check is, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["passed", "failed", "skipped", "no time left"]


@dataclass(frozen=True)
class Setting:
    """Where checks run, and on what."""

    device: str
    """``cuda`` or ``cpu``."""
    recipe: str
    work: Path
    """Their files, which go when all are done."""

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def shards(self) -> Path:
        return self.work / "shards"


@dataclass(frozen=True)
class Found:
    """What a check saw; it passed."""

    facts: dict[str, Any]
    """By what they are called in the report."""
    speeds: list[dict[str, str]] = field(default_factory=list)
    """Rows of the table of speeds."""
    tables: list[str] = field(default_factory=list)
    """Markdown."""


class CheckError(Exception):
    """What was looked at is not as it should be; says what it is, and what it should be."""


class SkippedError(Exception):
    """The check can't be made here; says why."""


CheckFunction = Callable[[Setting], Found]


@dataclass(frozen=True)
class Outcome:
    """Of one check, for the report."""

    name: str
    status: Status
    seconds: float = 0.0
    why: str = ""
    """In words, unless it passed."""
    facts: dict[str, Any] = field(default_factory=dict)
    speeds: list[dict[str, str]] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
