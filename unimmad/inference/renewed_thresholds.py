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

from unimmad.checkpoint.calibration_scores import Scores
from unimmad.checkpoint.conformal import images_needed, thresholds_by_sensors
from unimmad.checkpoint.thresholds import ClassThreshold, Sensors, SensorThreshold, Threshold, Thresholds


def renewed(old: Thresholds, as_they_came: Scores, picked: Scores) -> Thresholds:
    """Thresholds of every class from the scores of both kinds.

    Those of all classes together stay: a run of one class would change what they are a mixture of. So does a threshold
    that more images made than there are scores of (``unimmad calibrate --missing-sensors``), and what else is known of
    a set of images (that of pixels, the usual value of maps, edges).

    Args:
        old: whose false-alarm rate, datasets and classes these are.
        as_they_came: of every class that has a threshold, and of others: those get one from as many scores on as the
            rate needs.
        picked: of classes that have one without them.
    """
    promised = _thresholds(old, as_they_came)
    known = {name: of_class for name, of_class in picked.items() if name in as_they_came}
    both = _thresholds(old, joined(as_they_came, known))
    classes = {}
    for name, own in promised.classes.items():
        before = old.classes.get(name)
        parts = [
            part
            for found in (own, *own.sets)
            if (part := _renewed_part(found, both.of_class(name, found.modalities), before, old)) is not None
        ]
        if parts:
            most = {key: value for key, value in vars(parts[0]).items() if key in SensorThreshold.model_fields}
            classes[name] = ClassThreshold(**most, sets=tuple(parts[1:]))
    return old.model_copy(update={"classes": {**old.classes, **classes}}).with_sets_of(old)


def _renewed_part(
    promised: SensorThreshold, both: Threshold | None, of_class: ClassThreshold | None, old: Thresholds
) -> SensorThreshold | None:
    """The threshold of one set of modalities; None where it has too few scores for a first one."""
    known = () if of_class is None else (of_class, *of_class.sets)
    before = next((one for one in known if set(one.modalities) == set(promised.modalities)), None)
    if before is None:
        enough = promised.images >= images_needed(old.false_alarm_rate)
        return _raised(promised, both) if enough else None
    if promised.images < before.images:
        return SensorThreshold(**{key: value for key, value in vars(before).items() if key != "sets"})
    kept = {name: getattr(before, name) for name in ("pixel_value", "usual", "edge_gain", "modalities")}
    return _raised(promised, both).model_copy(update=kept)


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


def _raised(promised: SensorThreshold, both: Threshold | None) -> SensorThreshold:
    """The promise of the first, at the larger value."""
    return promised.model_copy(update={"value": max(promised.value, promised.value if both is None else both.value)})
