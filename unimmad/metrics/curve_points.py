"""Points of a ROC curve, histograms and the F1max threshold: what is drawn of scores with labels.

Each point is exact; where a curve has more corners than are drawn, the points are spread evenly over both of its
axes. Arrays named normal_N and anomalous_A are sorted ascending and hold no NaN.

Letters: N normal scores, A anomalous scores, P points, T thresholds, B bins.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unimmad.metrics.append_buffer import blocks

Floats = NDArray[np.floating]

MOST_POINTS = 512
BINS = 64


class Curve(NamedTuple):
    """A curve against the false-positive rate, from (0, 0) on; float64 fractions, never decreasing."""

    fpr_P: NDArray[np.float64]
    value_P: NDArray[np.float64]


class Histogram(NamedTuple):
    """How the scores of either label are spread; each label's shares sum to 1 (or are all 0 where it has none)."""

    edge_B1: NDArray[np.float64]
    normal_B: NDArray[np.float64]
    anomalous_B: NDArray[np.float64]


def spread_thresholds(normal_N: Floats, anomalous_A: Floats, most: int = MOST_POINTS - 1) -> Floats:
    """Distinct scores, largest first: all of them where they are few, else at equal steps of either label's rank."""
    if len(normal_N) + len(anomalous_A) > most:
        normal_N = normal_N[_even_positions(len(normal_N), most // 2)]
        anomalous_A = anomalous_A[_even_positions(len(anomalous_A), most // 2)]
    return np.unique(np.concatenate([normal_N, anomalous_A]))[::-1]


def roc_points(normal_N: Floats, anomalous_A: Floats) -> Curve:
    """True-positive against false-positive rate from (0, 0) to (1, 1); needs scores of both labels."""
    threshold_T = spread_thresholds(normal_N, anomalous_A)
    return Curve(
        from_zero(share_at_or_above(normal_N, threshold_T)),
        from_zero(share_at_or_above(anomalous_A, threshold_T)),
    )


def f1max_threshold(normal_N: Floats, anomalous_A: Floats) -> float:
    """The lowest score that, used as threshold >=, reaches F1max; needs an anomalous score."""
    best_f1, best_score = -1.0, 0.0
    for block in blocks(len(anomalous_A)):
        score_A = anomalous_A[block]
        hits_A = len(anomalous_A) - np.searchsorted(anomalous_A, score_A, side="left")
        false_A = len(normal_N) - np.searchsorted(normal_N, score_A, side="left")
        f1_A = 2 * hits_A / (len(anomalous_A) + hits_A + false_A)
        best = int(f1_A.argmax())
        if f1_A[best] > best_f1:
            best_f1, best_score = float(f1_A[best]), float(score_A[best])
    return best_score


def histogram(normal_N: Floats, anomalous_A: Floats, bins: int = BINS) -> Histogram:
    """Equal bins from the smallest to the largest finite score; infinite scores count in the outer bins."""
    both = [
        values[np.searchsorted(values, -np.inf, side="right") : np.searchsorted(values, np.inf)]
        for values in (normal_N, anomalous_A)
    ]
    low = min((float(finite[0]) for finite in both if len(finite)), default=0.0)
    high = max((float(finite[-1]) for finite in both if len(finite)), default=1.0)
    edge_B1 = np.linspace(low, high if high > low else low + max(abs(low), 1.0), bins + 1)
    return Histogram(edge_B1, _shares(normal_N, edge_B1), _shares(anomalous_A, edge_B1))


def _even_positions(length: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, length - 1, num=min(length, most), dtype=np.int64))


def from_zero(value_P: NDArray[np.float64]) -> NDArray[np.float64]:
    """A curve's coordinates with the start at 0 put before them."""
    return np.concatenate([[0.0], value_P])


def share_at_or_above(sorted_S: Floats, threshold_T: Floats) -> NDArray[np.float64]:
    """Of scores sorted ascending, the share at or above each threshold."""
    return 1.0 - np.searchsorted(sorted_S, threshold_T, side="left") / len(sorted_S)


def _shares(sorted_S: Floats, edge_B1: NDArray[np.float64]) -> NDArray[np.float64]:
    inner = np.searchsorted(sorted_S, edge_B1[1:-1], side="left")
    counts_B = np.diff(np.concatenate([[0], inner, [len(sorted_S)]]))
    return counts_B / max(1, len(sorted_S))
