"""Test images of one class that consist of different modalities: measured within each set of modalities.

A map adds up over a sample's modalities, so scores of more of them are higher, whether or not anything is wrong. Images
of other modalities are therefore never ranked among each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from unimmad.metrics.metrics import METRIC_KEYS, Metrics
from unimmad.serialization.validation import Count, Entry, Share

Sensors = tuple[str, ...]
"""Names of the modalities that a sample has, in slot order."""


class SensorSetEntry(Entry):
    """As it stands in a report."""

    modalities: list[str]
    normal: Count
    anomalous: Count
    metrics: dict[str, Share | None]


@dataclass(frozen=True)
class SensorSet:
    """The images of a class that have exactly these modalities, and their metrics."""

    modalities: Sensors
    normal: int
    anomalous: int
    metrics: Metrics

    @property
    def one_label(self) -> bool:
        return not (self.normal and self.anomalous)

    def entry(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "modalities": list(self.modalities),
            "normal": self.normal,
            "anomalous": self.anomalous,
            "metrics": self.metrics,
        }

    def __str__(self) -> str:
        return f"{' + '.join(self.modalities)} ({self.normal} normal, {self.anomalous} anomalous)"


def read_sensor_set(entry: SensorSetEntry) -> SensorSet:
    """What ``SensorSet.entry`` gave."""
    metrics = {key: entry.metrics.get(key) for key in METRIC_KEYS}
    return SensorSet(tuple(entry.modalities), entry.normal, entry.anomalous, metrics)


def joined_metrics(sets: Sequence[SensorSet]) -> Metrics:
    """Each metric's mean over the sets that define it, weighted by their anomalous images."""
    if len(sets) == 1:
        return sets[0].metrics
    return {key: _joined((one.metrics[key], one.anomalous) for one in sets) for key in METRIC_KEYS}


def most_shown(sets: Sequence[SensorSet]) -> SensorSet:
    """The set that curves are drawn of: the largest with both labels; else the largest; of equal ones the first."""
    return max(sets, key=lambda one: (not one.one_label, one.normal + one.anomalous))


def set_notes(class_name: str, sets: Sequence[SensorSet]) -> list[str]:
    """What to say of a class whose images have different modalities; nothing of others."""
    if not sets:
        return []
    listed = "; ".join(map(str, sets))
    if all(one.one_label for one in sets):
        return [
            f"{class_name}: the label coincides with the set of sensors, so that no image metric would speak of "
            f"defects: {listed}"
        ]
    return [f"{class_name}: compared within equal sets of sensors, then the mean by anomalous images: {listed}"]


def _joined(values: Iterable[tuple[float | None, int]]) -> float | None:
    defined = [(value, weight) for value, weight in values if value is not None and weight]
    return sum(value * weight for value, weight in defined) / sum(weight for _, weight in defined) if defined else None
