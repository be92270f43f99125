"""Thresholds from scores of normal images, at a chosen false-alarm rate: split conformal prediction."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from fractions import Fraction

from unimmad.checkpoint.thresholds import ClassThreshold, Sensors, SensorThreshold, Threshold, Thresholds
from unimmad.config import Precision
from unimmad.data.index import DatasetEntry


def conformal_threshold(scores: Sequence[float], false_alarm_rate: float) -> Threshold:
    """The ceil((n + 1)(1 - rate))-th smallest of n normal scores (split conformal prediction's quantile).

    A further normal image, exchangeable with these, lies above it with probability ``false_alarm_rate`` at most.
    With fewer than 1 / rate - 1 scores there is none: then it is the largest, and the bound is 1 / (n + 1).

    Raises:
        ValueError: no score, one that is not finite, or a rate that is not between 0 and 1.
    """
    check_rate(false_alarm_rate)
    if not scores or not all(math.isfinite(score) for score in scores):
        raise ValueError(f"a threshold needs finite scores of normal images; there are {len(scores)}, not all finite")
    count = len(scores)
    # As a fraction, since (n + 1)(1 - 0.05) in floating point can lie just above a whole number.
    rank = min(count, math.ceil((count + 1) * (1 - Fraction(repr(false_alarm_rate)))))
    return Threshold(value=sorted(scores)[rank - 1], images=count, fpr_bound=float(1 - Fraction(rank, count + 1)))


def check_rate(false_alarm_rate: float) -> None:
    """Raise ValueError unless the rate lies between 0 and 1."""
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"a false-alarm rate of {false_alarm_rate:g} is not possible; choose one between 0 and 1")


def images_needed(false_alarm_rate: float) -> int:
    """How few normal images can promise the rate."""
    return math.ceil(1 / Fraction(repr(false_alarm_rate))) - 1


def thresholds_by_sensors(
    scores: Mapping[str, Mapping[Sensors, Sequence[float]]],
    datasets: Mapping[str, DatasetEntry],
    trained_classes: Sequence[str],
    false_alarm_rate: float,
    precision: Precision | None = None,
    usual: Mapping[str, Mapping[Sensors, Sequence[float]]] | None = None,
) -> Thresholds:
    """Thresholds of every class and of all together, each set of modalities for itself.

    Args:
        scores: of the normal images, by ``DATASET/CLASS`` and then by what the images consist of.
        datasets: all that the model was trained on.
        trained_classes: all classes of theirs.
        false_alarm_rate: between 0 and 1.
        precision: what the scores were computed in.
        usual: the medians of the images' maps, as ``scores``; None: not known.

    Raises:
        ValueError: as ``conformal_threshold``; names the class.
    """
    classes = {}
    pooled: dict[Sensors, list[float]] = {}
    pooled_usual: dict[Sensors, list[float]] = {}
    for name, by_sensors in scores.items():
        try:
            of_maps = {} if usual is None else usual[name]
            most, *others = _thresholds_of_sets(by_sensors, of_maps, false_alarm_rate)
        except ValueError as error:
            raise ValueError(f"class {name}: {error}") from None
        classes[name] = ClassThreshold(**most.model_dump(), sets=tuple(others))
        for sensors, of_set in by_sensors.items():
            # Of two datasets one may list the same modalities in another order.
            same = next((known for known in pooled if set(known) == set(sensors)), sensors)
            pooled.setdefault(same, []).extend(of_set)
            pooled_usual.setdefault(same, []).extend(of_maps.get(sensors, ()))
    return Thresholds(
        false_alarm_rate=false_alarm_rate,
        classes=classes,
        all_classes=conformal_threshold([score for of_set in pooled.values() for score in of_set], false_alarm_rate),
        datasets=dict(datasets),
        trained_classes=tuple(trained_classes),
        precision=precision,
        sensor_sets=tuple(_thresholds_of_sets(pooled, pooled_usual, false_alarm_rate)),
    )


def _thresholds_of_sets(
    by_sensors: Mapping[Sensors, Sequence[float]],
    usual: Mapping[Sensors, Sequence[float]],
    false_alarm_rate: float,
) -> list[SensorThreshold]:
    """Those of most images first; of as many, those of more modalities."""
    return [
        SensorThreshold(
            **conformal_threshold(scores, false_alarm_rate).model_dump(),
            modalities=sensors,
            usual=statistics.median(usual[sensors]) if usual.get(sensors) else None,
            typical=statistics.median(scores),
        )
        for sensors, scores in sorted(by_sensors.items(), key=lambda item: (-len(item[1]), -len(item[0]), item[0]))
    ]
