"""A sweep: one training for each combination of values, each in a folder of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One training of a submission; without a sweep there is a single one, without name."""

    name: str
    """Of its folder, such as ``model.leaders=8``; several settings joined by ``,``."""
    argv: tuple[str, ...]
    """For the trainer."""


def expand_sweep(sweep: Sequence[str]) -> list[Variant]:
    """Every combination of ``KEY=V1,V2`` texts, the last varying fastest.

    Raises:
        ValueError: a text of another form, an empty or repeated value, a key that comes twice.
    """
    axes = [_settings(text) for text in sweep]
    keys = [axis[0].partition("=")[0] for axis in axes]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"--sweep {key}=...: {key} is swept twice; give all its values in one --sweep")
    return [
        Variant(",".join(settings), tuple(word for setting in settings for word in ("--set", setting)))
        for settings in itertools.product(*axes)
    ]


def _settings(text: str) -> list[str]:
    key, equals, values = text.partition("=")
    parts = [value.strip() for value in values.split(",")]
    if not equals or not key.strip() or not all(parts):
        raise ValueError(f"--sweep {text}: write it as KEY=VALUE,VALUE, for example model.leaders=8,16,32")
    if len(set(parts)) < len(parts):
        raise ValueError(f"--sweep {text}: a value comes twice, and both would train in one folder")
    if any("/" in part for part in parts):
        raise ValueError(f"--sweep {text}: a value with a slash can't name a folder; use a recipe file for each")
    return [f"{key.strip()}={value}" for value in parts]
