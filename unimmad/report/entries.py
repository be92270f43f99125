"""What a report.json holds."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from unimmad.data.index import Name
from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.serialization.validation import Count, Entry, Share


def _all_keys(metrics: dict[str, float | None]) -> dict[str, float | None]:
    if missing := [key for key in METRIC_KEYS if key not in metrics]:
        raise ValueError(f"no entry {missing[0]!r}")
    return {key: metrics[key] for key in METRIC_KEYS}


def _each_class_once(classes: list[ClassEntry]) -> list[ClassEntry]:
    names = [f"{entry.dataset}/{entry.class_name}" for entry in classes]
    if len(set(names)) < len(names):
        raise ValueError(f"class {max(names, key=names.count)} is listed twice")
    return classes


MetricsEntry = Annotated[dict[str, Share | None], AfterValidator(_all_keys)]


class ClassEntry(Entry):
    """The metrics of one class."""

    dataset: Name
    field: str
    class_name: Name = Field(alias="class")
    normal: Count
    anomalous: Count
    metrics: MetricsEntry


class PublishedEntry(Entry):
    """A row that a paper gives."""

    dataset: str
    name: str
    metrics: MetricsEntry
    source: str
    note: str


class ReportEntry(Entry):
    """The whole file; the means in it are for other readers."""

    header: dict[str, str]
    classes: Annotated[list[ClassEntry], Field(min_length=1), AfterValidator(_each_class_once)]
    published: list[PublishedEntry] = Field(default_factory=list)
