"""Which samples of a class are worth a picture: failures first, then ordinary ones.

Letters: I images of one class.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
Labels = NDArray[np.bool_]


class Reason(StrEnum):
    """Why a sample was chosen, in the words that stand above its picture."""

    FALSE_ALARM = "highest-scoring normal"
    MISSED = "lowest-scoring anomaly"
    ORDINARY_ANOMALY = "ordinary anomaly"
    ORDINARY_NORMAL = "ordinary normal"


@dataclass(frozen=True)
class Choice:
    """One sample chosen, by its position among the class's images."""

    index: int
    reason: Reason
    note: str
    """The reason, and for a failure how many images of the other label it is on the wrong side of."""


def failures_first(scores_I: Scores, anomalous_I: Labels, defects: Sequence[str], count: int) -> tuple[Choice, ...]:
    """At most ``count`` samples: false alarms, missed anomalies, ordinary anomalies, an ordinary normal one.

    A quarter (at least one, from three samples on) are the highest-scoring normals, as many are the
    lowest-scoring anomalies. The others are ordinary: anomalies with scores nearest to the median of theirs, the
    kinds of defect in turn, and, last, one normal sample, likewise. Where one group has too few, more ordinary
    samples fill the places. Equal scores go by position.

    Args:
        scores_I: image scores, no NaN.
        anomalous_I: True where anomalous.
        defects: the kind of defect of each image; only those of anomalies count.
        count: pictures to choose.
    """
    worst_normals = _by(-scores_I, ~anomalous_I)
    worst_anomalies = _by(scores_I, anomalous_I)
    failures = max(1, count // 4) if count > 2 else 0
    worst = {*worst_normals[:failures], *worst_anomalies[:failures]}
    middle_anomalies = [index for index in _by(_from_median(scores_I, anomalous_I), anomalous_I) if index not in worst]
    middle_normals = [index for index in _by(_from_median(scores_I, ~anomalous_I), ~anomalous_I) if index not in worst]
    ordinary_anomalies = _in_turn(middle_anomalies, defects)
    by_importance = (
        (Reason.FALSE_ALARM, worst_normals[:failures]),
        (Reason.MISSED, worst_anomalies[:failures]),
        (Reason.ORDINARY_ANOMALY, ordinary_anomalies[: max(1, count - 2 * failures - 1)]),
        (Reason.ORDINARY_NORMAL, middle_normals[:1]),
        (Reason.ORDINARY_ANOMALY, ordinary_anomalies),
        (Reason.ORDINARY_NORMAL, middle_normals),
    )
    reasons: dict[int, Reason] = {}
    for reason, indices in by_importance:
        for index in indices:
            if len(reasons) < count:
                reasons.setdefault(index, reason)
    ordered = sorted(reasons.items(), key=lambda chosen: list(Reason).index(chosen[1]))
    return tuple(Choice(index, reason, _note(index, reason, scores_I, anomalous_I)) for index, reason in ordered)


def _by(values_I: Scores, chosen_I: Labels) -> list[int]:
    """Positions of the chosen images, smallest value first."""
    return [int(index) for index in np.argsort(values_I, kind="stable") if chosen_I[index]]


def _from_median(scores_I: Scores, chosen_I: Labels) -> Scores:
    """How many places each image lies from the middle of the chosen ones, by score: infinite scores can be ordered."""
    ordered = np.sort(scores_I[chosen_I])
    places_I = np.searchsorted(ordered, scores_I, side="left").astype(np.float64)
    return np.abs(places_I - (len(ordered) - 1) / 2)


def _in_turn(indices: Iterable[int], defects: Sequence[str]) -> list[int]:
    """The first of each kind of defect, then the second of each, and so on."""
    of_kind: dict[str, list[int]] = {}
    for index in indices:
        of_kind.setdefault(defects[index], []).append(index)
    rounds = itertools.zip_longest(*of_kind.values())
    return [index for group in rounds for index in group if index is not None]


def _note(index: int, reason: Reason, scores_I: Scores, anomalous_I: Labels) -> str:
    """Such as ``highest-scoring normal, >= 3 of 14 anomalies``: by score."""
    score = scores_I[index]
    if reason is Reason.FALSE_ALARM and anomalous_I.any():
        others_A = scores_I[anomalous_I]
        return f"{reason}, >= {int((others_A <= score).sum())} of {len(others_A)} anomalies"
    if reason is Reason.MISSED and not anomalous_I.all():
        others_N = scores_I[~anomalous_I]
        return f"{reason}, <= {int((others_N >= score).sum())} of {len(others_N)} normals"
    return str(reason)
