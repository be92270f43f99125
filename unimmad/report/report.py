"""The result of an evaluation, as report.json holds it: what was measured, by class, and the four kinds of mean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field, TypeAdapter

from unimmad.data.index import Name
from unimmad.metrics.at_threshold import AtThreshold
from unimmad.metrics.metrics import METRIC_KEYS, Metrics
from unimmad.report.at_threshold import AtThresholdEntry
from unimmad.serialization.documents import parse_json
from unimmad.serialization.validation import Count, Entry, Share, validated


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
    at_threshold: AtThresholdEntry | None = None


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


FORMAT = 1


@dataclass(frozen=True)
class ClassResult:
    """The metrics of one class's test images."""

    dataset: str
    field: str
    class_name: str
    """Without the dataset's name."""
    normal: int
    """Number of normal test images."""
    anomalous: int
    """Number of anomalous test images."""
    metrics: Metrics
    """By the keys in ``METRIC_KEYS``, fractions; None where undefined."""
    at_threshold: AtThreshold | None = None
    """None where the checkpoint has no thresholds."""


@dataclass(frozen=True)
class Mean:
    """Mean of some members (classes or datasets), each metric over the members that define it."""

    name: str
    metrics: Metrics
    covered: dict[str, int]
    """By metric: how many members define it."""
    members: int
    """How many members there are."""
    unit: str
    """What the members are, in the plural."""

    @property
    def incomplete(self) -> dict[str, int]:
        """The metrics that cover fewer members than there are, with the number they cover."""
        return {key: count for key, count in self.covered.items() if count < self.members}


@dataclass(frozen=True)
class PublishedRow:
    """Numbers that a paper gives for one dataset, to stand beside ours."""

    dataset: str
    """Our name of the dataset."""
    name: str
    """Of the method, and of the dataset as the paper calls it."""
    metrics: Metrics
    """None where nothing was published."""
    source: str
    note: str
    """What differs from our rules."""


@dataclass(frozen=True)
class Report:
    """Everything a table shows. ``header`` says how the numbers came about (checkpoint, blur, ...)."""

    header: dict[str, str]
    classes: tuple[ClassResult, ...]
    published: tuple[PublishedRow, ...] = ()

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets, in the order of their first class."""
        return tuple(dict.fromkeys(result.dataset for result in self.classes))

    def classes_of(self, dataset: str) -> tuple[ClassResult, ...]:
        return tuple(result for result in self.classes if result.dataset == dataset)

    def published_of(self, dataset: str) -> tuple[PublishedRow, ...]:
        return tuple(row for row in self.published if row.dataset == dataset)

    def mean_of_dataset(self, dataset: str) -> Mean:
        members = [result.metrics for result in self.classes_of(dataset)]
        return mean_of_members(f"mean of {dataset}", members, "classes")

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, in the order of their first class."""
        return tuple(dict.fromkeys(result.field for result in self.classes))

    def mean_of_field(self, field: str) -> Mean:
        """Over all classes of the field, whatever their dataset."""
        members = [result.metrics for result in self.classes if result.field == field]
        return mean_of_members(f"field mean: {field}", members, "classes")

    def mean_of_classes(self) -> Mean:
        return mean_of_members("mean of classes", [result.metrics for result in self.classes], "classes")

    def mean_of_datasets(self) -> Mean:
        members = [self.mean_of_dataset(dataset).metrics for dataset in self.datasets]
        return mean_of_members("mean of datasets", members, "datasets")

    def means(self) -> tuple[Mean, ...]:
        """Each dataset's mean, each field's, then the mean of all classes and the mean of the datasets' means."""
        of_datasets = tuple(self.mean_of_dataset(dataset) for dataset in self.datasets)
        return (*of_datasets, *self.means_of_all())

    def means_of_all(self) -> tuple[Mean, ...]:
        """The means that go beyond one dataset."""
        of_fields = tuple(self.mean_of_field(field) for field in self.fields)
        return (*of_fields, self.mean_of_classes(), self.mean_of_datasets())


def to_json(report: Report) -> str:
    """The report as JSON text; undefined metrics are null. The means are written too, for other readers."""
    content = {
        "format": FORMAT,
        "header": report.header,
        "classes": [class_entry(result) for result in report.classes],
        "means": [_mean_entry(mean) for mean in report.means()],
        "published": [asdict(row) for row in report.published],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> Report:
    """Read what :func:`to_json` wrote.

    Raises:
        ValueError: no JSON, another format, or an entry that is missing or of another form, which the message names.
    """
    remedy = "evaluate again to write a new one"
    try:
        content = parse_json(text, "the report")
    except ValueError as error:
        raise ValueError(f"{error}; {remedy}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"the report is not of format {FORMAT}; {remedy}")
    entry = validated(_SCHEMA, content, "the report", remedy)
    return Report(
        header=entry.header,
        classes=tuple(read_class(of_class) for of_class in entry.classes),
        published=tuple(PublishedRow(**row.model_dump()) for row in entry.published),
    )


_SCHEMA = TypeAdapter(ReportEntry)


def mean_of_members(name: str, members: Iterable[Mapping[str, float | None]], unit: str) -> Mean:
    """Mean of each metric over the members that define it; ``unit`` is what the members are, in the plural."""
    members = list(members)
    defined = {key: [value for metrics in members if (value := metrics[key]) is not None] for key in METRIC_KEYS}
    return Mean(
        name=name,
        metrics={key: sum(values) / len(values) if values else None for key, values in defined.items()},
        covered={key: len(values) for key, values in defined.items()},
        members=len(members),
        unit=unit,
    )


def class_entry(result: ClassResult) -> dict[str, Any]:
    """A class's result as JSON's types."""
    return {
        "dataset": result.dataset,
        "field": result.field,
        "class": result.class_name,
        "normal": result.normal,
        "anomalous": result.anomalous,
        "metrics": result.metrics,
        **({} if result.at_threshold is None else {"at_threshold": result.at_threshold.entry()}),
    }


def _mean_entry(mean: Mean) -> dict[str, Any]:
    return {
        "name": mean.name,
        "members": mean.members,
        "unit": mean.unit,
        "metrics": mean.metrics,
        "covered": mean.covered,
    }


def read_class(entry: ClassEntry) -> ClassResult:
    """What :func:`class_entry` gave."""
    values = entry.model_dump(exclude={"at_threshold"})
    return ClassResult(**values, at_threshold=None if entry.at_threshold is None else entry.at_threshold.counts())
