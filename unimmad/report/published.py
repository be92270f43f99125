"""Published rows, to stand beside ours; ``published.json`` holds them with their sources."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files

from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.report import PublishedRow
from unimmad.serialization.documents import parse_json


def published_rows(datasets: Sequence[str], method: str | None = None) -> tuple[PublishedRow, ...]:
    """The rows of datasets that go by one of the names in ``published.json``, however capitalised.

    Args:
        datasets: by the names that the data have for them.
        method: whose rows; None: all methods'.

    Raises:
        ValueError: there is no row for any of them.
    """
    content = files("unimmad.report").joinpath("published.json").read_bytes()
    entries = [row for row in parse_json(content, "published.json")["rows"] if method in (None, row["method"])]
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
        known = ", ".join(dict.fromkeys(name for entry in entries for name in entry["datasets"])) or "nothing else"
        of_method = "" if method is None else f" of {method}"
        raise ValueError(f"no published row{of_method} for {', '.join(datasets)}; there are rows for {known}")
    return rows


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
