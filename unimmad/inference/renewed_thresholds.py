"""Thresholds with the scores of images that people called normal: what keeps the promise, and what does not.

A threshold of split conformal prediction promises its rate to images that are exchangeable with those it is taken
from. Calibration's are: nobody chose them by their scores. Images that somebody picked out of predictions are not: who
confirms easy ones alone would lower the threshold, and break the promise. So there are two kinds.

- As they came: calibration's images, and those called normal of a run of images of which every one was called. The
  promise rests on these alone.
- Picked: all others called normal. The threshold is the larger one of that of the first kind and that of both, so
  that picked images can raise it and never lower it, and a further normal image lies above it no more often than
  above the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from unimmad.checkpoint.calibration_scores import Scores
from unimmad.checkpoint.thresholds import (
    ClassThreshold,
    Sensors,
    SensorThreshold,
    Threshold,
    Thresholds,
    thresholds_by_sensors,
)

AnyThreshold = TypeVar("AnyThreshold", bound=Threshold)


def renewed(old: Thresholds, as_they_came: Scores, picked: Scores) -> Thresholds:
    """Thresholds of every class, and of all, from the scores of both kinds.

    What else is known of a set of images (that of pixels, the usual value of maps, edges) stays as it was calibrated.

    Args:
        old: whose false-alarm rate, datasets and classes these are.
        as_they_came: of every class that has a threshold.
        picked: of classes that have one without them.
    """
    promised = _thresholds(old, as_they_came)
    known = {name: of_class for name, of_class in picked.items() if name in as_they_came}
    both = _thresholds(old, joined(as_they_came, known))
    classes = {}
    for name, own in promised.classes.items():
        before = old.classes.get(name)
        parts = [
            _as_before(
                _raised(part, both.of_class(name, part.modalities)), () if before is None else (before, *before.sets)
            )
            for part in (own, *own.sets)
        ]
        most = {key: value for key, value in vars(parts[0]).items() if key in SensorThreshold.model_fields}
        classes[name] = ClassThreshold(**most, sets=tuple(parts[1:]))
    sets = tuple(
        _as_before(_raised(part, both.of_all(part.modalities)), old.sensor_sets) for part in promised.sensor_sets
    )
    of_all = _raised(promised.all_classes, both.all_classes)
    return old.model_copy(
        update={
            "classes": classes,
            "all_classes": of_all.model_copy(update={"pixel_value": old.all_classes.pixel_value}),
            "sensor_sets": sets,
        }
    )


def joined(first: Scores, second: Scores) -> dict[str, dict[Sensors, list[float]]]:
    """All scores of both; modalities in another order are the same ones."""
    found: dict[str, dict[Sensors, list[float]]] = {}
    for scores in (first, second):
        for name, by_sensors in scores.items():
            of_class = found.setdefault(name, {})
            for sensors, of_set in by_sensors.items():
                same = next((known for known in of_class if set(known) == set(sensors)), sensors)
                of_class.setdefault(same, []).extend(of_set)
    return found


def _thresholds(old: Thresholds, scores: Scores) -> Thresholds:
    return thresholds_by_sensors(scores, old.datasets, old.trained_classes, old.false_alarm_rate, old.precision)


def _raised(promised: AnyThreshold, both: Threshold | None) -> AnyThreshold:
    """The promise of the first, at the larger value."""
    return promised.model_copy(update={"value": max(promised.value, promised.value if both is None else both.value)})


def _as_before(found: SensorThreshold, old: Iterable[SensorThreshold]) -> SensorThreshold:
    before = next((one for one in old if set(one.modalities) == set(found.modalities)), None)
    kept = {} if before is None else {name: getattr(before, name) for name in ("pixel_value", "usual", "edge_gain")}
    return found.model_copy(update={**kept, "modalities": found.modalities if before is None else before.modalities})
