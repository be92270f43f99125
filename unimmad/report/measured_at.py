"""At what size a report's pixels were measured: numbers of one size say nothing about those of another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from unimmad.data.views import Resolution
from unimmad.report.report import PublishedRow

FACT = "metrics at"
"""Its name in a report's header."""
IN_WORDS: dict[Resolution, str] = {
    "model": "the model's image size",
    "original": "each image's original size; maps are brought back to it, masks are as stored",
}
NOT_TO_BE_COMPARED = "pixel metrics of different sizes are not to be compared"
OF_PUBLISHED = "Measured at its authors' image size, ours at each image's original one: not to be compared by pixels."


def measured_at(header: Mapping[str, str]) -> str:
    """In words; a report from before there was a choice is of the model's size."""
    return header.get(FACT, IN_WORDS["model"])


def published_beside(rows: Iterable[PublishedRow], resolution: Resolution) -> tuple[PublishedRow, ...]:
    """Published rows to stand beside numbers of that size, with what is to be known of it."""
    if resolution == "model":
        return tuple(rows)
    return tuple(replace(row, note=f"{OF_PUBLISHED} {row.note}".strip()) for row in rows)
