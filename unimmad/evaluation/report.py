"""The result of an evaluation: what was measured, class by class, and the three kinds of mean."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from unimmad.evaluation.metrics import METRIC_KEYS, Metrics

FORMAT = 1


@dataclass(frozen=True)
class ClassResult:
    """The metrics of one class's test images."""

    dataset: str
    field: str
    class_name: str
    """Without the data set's name."""
    normal: int
    """Number of normal test images."""
    anomalous: int
    """Number of anomalous test images."""
    metrics: Metrics
    """By the keys in ``METRIC_KEYS``, fractions; None where undefined."""


@dataclass(frozen=True)
class Mean:
    """Mean of some members (classes or data sets), each metric over the members that define it."""

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
class Report:
    """Everything a table shows. ``header`` says how the numbers came about (checkpoint, blur, ...)."""

    header: dict[str, str]
    classes: tuple[ClassResult, ...]

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the data sets, in the order of their first class."""
        return tuple(dict.fromkeys(result.dataset for result in self.classes))

    def classes_of(self, dataset: str) -> tuple[ClassResult, ...]:
        return tuple(result for result in self.classes if result.dataset == dataset)

    def mean_of_dataset(self, dataset: str) -> Mean:
        members = [result.metrics for result in self.classes_of(dataset)]
        return _mean(f"mean of {dataset}", members, "classes")

    def mean_of_classes(self) -> Mean:
        return _mean("mean of classes", [result.metrics for result in self.classes], "classes")

    def mean_of_datasets(self) -> Mean:
        members = [self.mean_of_dataset(dataset).metrics for dataset in self.datasets]
        return _mean("mean of data sets", members, "data sets")

    def means(self) -> tuple[Mean, ...]:
        """Each data set's mean, then the mean of all classes, then the mean of the data sets' means."""
        each = tuple(self.mean_of_dataset(dataset) for dataset in self.datasets)
        return (*each, self.mean_of_classes(), self.mean_of_datasets())


def to_json(report: Report) -> str:
    """The report as JSON text; undefined metrics are null. The means are written too, for other readers."""
    content = {
        "format": FORMAT,
        "header": report.header,
        "classes": [_class_entry(result) for result in report.classes],
        "means": [_mean_entry(mean) for mean in report.means()],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> Report:
    """Read what :func:`to_json` wrote.

    Raises:
        ValueError: no JSON, another format, or a missing entry, which the message names.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the report is no JSON ({error}); evaluate again to write a new one") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"the report is not of format {FORMAT}; evaluate again to write a new one")
    try:
        header = {str(key): str(value) for key, value in content["header"].items()}
        return Report(header=header, classes=tuple(_read_class(entry) for entry in content["classes"]))
    except KeyError as error:
        raise ValueError(f"the report has no entry {error}; evaluate again to write a new one") from None
    except (AttributeError, TypeError) as error:
        raise ValueError(f"the report has another form ({error}); evaluate again to write it anew") from None


def _mean(name: str, members: Iterable[Mapping[str, float | None]], unit: str) -> Mean:
    members = list(members)
    defined = {key: [value for metrics in members if (value := metrics[key]) is not None] for key in METRIC_KEYS}
    return Mean(
        name=name,
        metrics={key: sum(values) / len(values) if values else None for key, values in defined.items()},
        covered={key: len(values) for key, values in defined.items()},
        members=len(members),
        unit=unit,
    )


def _class_entry(result: ClassResult) -> dict[str, Any]:
    return {
        "dataset": result.dataset,
        "field": result.field,
        "class": result.class_name,
        "normal": result.normal,
        "anomalous": result.anomalous,
        "metrics": result.metrics,
    }


def _mean_entry(mean: Mean) -> dict[str, Any]:
    return {
        "name": mean.name,
        "members": mean.members,
        "unit": mean.unit,
        "metrics": mean.metrics,
        "covered": mean.covered,
    }


def _read_class(entry: dict[str, Any]) -> ClassResult:
    values = {key: entry["metrics"][key] for key in METRIC_KEYS}
    return ClassResult(
        dataset=str(entry["dataset"]),
        field=str(entry["field"]),
        class_name=str(entry["class"]),
        normal=int(entry["normal"]),
        anomalous=int(entry["anomalous"]),
        metrics={key: None if value is None else float(value) for key, value in values.items()},
    )
