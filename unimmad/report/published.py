"""Published rows, to stand beside ours; ``published.json`` holds them with their sources."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files

from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.report import PublishedRow
from unimmad.serialization.documents import parse_json


def published_rows(datasets: Sequence[str]) -> tuple[PublishedRow, ...]:
    """The rows of datasets that go by one of the names in ``published.json``, however capitalised.

    Raises:
        ValueError: there is no row for any of them.
    """
    entries = parse_json(files("unimmad.report").joinpath("published.json").read_bytes(), "published.json")["rows"]
    rows = tuple(
        PublishedRow(
            dataset=dataset,
            name=entry["name"],
            metrics={key: entry["metrics"].get(key) for key in METRIC_KEYS},
            source=entry["source"],
            note=entry["note"],
        )
        for dataset in datasets
        for entry in entries
        if _plain(dataset) in map(_plain, entry["datasets"])
    )
    if not rows:
        known = ", ".join(name for entry in entries for name in entry["datasets"])
        raise ValueError(f"no published row for {', '.join(datasets)}; there are rows for datasets named {known}")
    return rows


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
