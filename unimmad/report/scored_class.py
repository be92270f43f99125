"""What is known of one class once all its samples are scored.

Letters: I samples of a class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from unimmad.metrics.curve_points import Histogram
from unimmad.metrics.pixel_curves import PixelCurves
from unimmad.report.expert_usage import ClassUsage, UsageEntry, read_usage, usage_entry
from unimmad.report.report import ClassEntry, ClassResult, class_entry, read_class
from unimmad.report.sensor_sets import Sensors, most_shown
from unimmad.serialization.validation import Count, Entry, Share, validated


class Resizing(Entry):
    """How a class's images came to the model's size, and what their masks lost on the way."""

    shrinking: float = 1.0
    """How many times smaller the image was made that was made smallest, along the side where that is more."""
    height: Count = 0
    """Its own, in pixels."""
    width: Count = 0
    regions: Count = 0
    """Anomalous regions of the masks that could lose some."""
    lost: Count = 0
    """How many of them no pixel shows."""
    emptied: Count = 0
    """Masks that lost all of their regions."""


NOT_RESIZED = Resizing()


@dataclass(frozen=True)
class ScoredClass:
    """One class's result, and what its curves and the expert map are drawn from."""

    result: ClassResult
    image_scores: NDArray[np.float64]
    """[I], in index order."""
    labels: NDArray[np.bool_]
    """[I], True where anomalous."""
    keys: tuple[str, ...]
    """I sample keys."""
    defects: tuple[str, ...]
    """I times ``good`` or the name of the defect."""
    curves: PixelCurves | None
    """None where a label has no pixel."""
    usage: ClassUsage | None
    """None where the method routes nothing."""
    resizing: Resizing = NOT_RESIZED
    outside: int = 0
    """Anomalous samples left out, since all that is marked lies outside of the class's region of interest."""
    sensors: tuple[Sensors, ...] = ()
    """I times what the sample consists of; empty where nobody says."""

    @property
    def names(self) -> tuple[str, str]:
        """Dataset and class."""
        return self.result.dataset, self.result.class_name

    @property
    def class_name(self) -> str:
        """``DATASET/CLASS``."""
        return f"{self.result.dataset}/{self.result.class_name}"

    @property
    def in_curves(self) -> NDArray[np.bool_]:
        """[I], True for the samples that curves are drawn of: all, or those of one set of modalities."""
        if not self.result.sensor_sets:
            return np.ones(len(self.keys), dtype=bool)
        shown = most_shown(self.result.sensor_sets).modalities
        return np.array([sensors == shown for sensors in self.sensors], dtype=bool)


def scored_entry(scored: ScoredClass) -> dict[str, Any]:
    """The class in JSON's types, exactly."""
    return {
        "class": class_entry(scored.result),
        "image_scores": scored.image_scores.tolist(),
        "labels": scored.labels.tolist(),
        "keys": scored.keys,
        "defects": scored.defects,
        "curves": None if scored.curves is None else curves_entry(scored.curves),
        "usage": None if scored.usage is None else usage_entry(scored.usage),
        "resizing": scored.resizing.model_dump(mode="json"),
        "outside": scored.outside,
        "sensors": scored.sensors,
    }


def curves_entry(curves: PixelCurves) -> dict[str, Any]:
    """The curves in JSON's types, exactly."""
    return {
        "fpr": curves.fpr.tolist(),
        "tpr": curves.tpr.tolist(),
        "pro": curves.pro.tolist(),
        "histogram": [values.tolist() for values in curves.histogram],
        "threshold": curves.threshold,
    }


class CurvesEntry(Entry):
    """The curves in JSON's types."""

    fpr: list[Share]
    tpr: list[Share]
    pro: list[Share]
    histogram: Annotated[list[list[float]], Field(min_length=3, max_length=3)]
    threshold: float


class _ScoredEntry(Entry):
    """The class in JSON's types."""

    result: ClassEntry = Field(alias="class")
    image_scores: list[float]
    labels: list[bool]
    keys: list[str]
    defects: list[str]
    curves: CurvesEntry | None
    usage: UsageEntry | None
    resizing: Resizing = NOT_RESIZED
    outside: Count
    sensors: list[list[str]]


def read_scored(content: Mapping[str, Any]) -> ScoredClass:
    """What :func:`scored_entry` gave, from JSON.

    Raises:
        ValueError: an entry is missing, of another form, or of another number of samples.
    """
    entry = validated(TypeAdapter(_ScoredEntry), content, "a class's scores", "evaluate again")
    counts = map(len, (entry.image_scores, entry.labels, entry.keys, entry.defects, entry.sensors or entry.keys))
    if len(set(counts)) > 1:
        raise ValueError(f"the scores of class {entry.result.class_name} are not complete; evaluate again")
    return ScoredClass(
        result=read_class(entry.result),
        image_scores=np.array(entry.image_scores, dtype=np.float64),
        labels=np.array(entry.labels, dtype=bool),
        keys=tuple(entry.keys),
        defects=tuple(entry.defects),
        curves=None if entry.curves is None else read_curves(entry.curves),
        usage=None if entry.usage is None else read_usage(entry.usage),
        resizing=entry.resizing,
        outside=entry.outside,
        sensors=tuple(map(tuple, entry.sensors)),
    )


def read_curves(entry: CurvesEntry) -> PixelCurves:
    """What :func:`curves_entry` gave."""
    return PixelCurves(
        fpr=np.array(entry.fpr, dtype=np.float64),
        tpr=np.array(entry.tpr, dtype=np.float64),
        pro=np.array(entry.pro, dtype=np.float64),
        histogram=Histogram(*(np.array(values, dtype=np.float64) for values in entry.histogram)),
        threshold=entry.threshold,
    )
