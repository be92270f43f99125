"""AUROC, average precision, F1max and AUPRO from scores alone, exactly and in little memory.

Every metric here is a sum (or a maximum) over the anomalous scores of a function of their ranks among the
normal ones. So the normal scores need one value sort, and the anomalous ones are looked up in it in blocks.
Only ranks are used: infinite scores are the largest and smallest, -0.0 equals 0.0, and ties are exact.

Letters: N normal scores, A anomalous scores, R regions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unimmad.metrics.append_buffer import blocks

Floats = NDArray[np.floating]

FPR_LIMIT = 0.3
"""AUPRO integrates the curve from a false-positive rate of 0 to this one."""
SAMPLED_THRESHOLDS = 99


class Ranking(NamedTuple):
    """The three metrics of one binary ranking, as fractions; None where undefined."""

    auroc: float | None
    ap: float | None
    f1max: float | None


def ranking_metrics(normal_N: Floats, anomalous_A: Floats) -> Ranking:
    """AUROC (ties counted half), AP (step-wise, ties merged) and F1max (over every distinct score).

    All need scores of both labels: where every score is anomalous, AP and F1max would be 1 whatever the scores are.

    Args:
        normal_N: scores of label 0, sorted ascending, no NaN.
        anomalous_A: scores of label 1, sorted ascending, no NaN.

    Raises:
        ValueError: NaN in either.
    """
    _refuse_nan(normal_N, anomalous_A[-1:])
    normal, anomalous = len(normal_N), len(anomalous_A)
    if anomalous == 0 or normal == 0:
        return Ranking(None, None, None)
    twice_won = 0
    precision_sum = 0.0
    f1max = 0.0
    for block in blocks(anomalous):
        score_A = anomalous_A[block]
        below_A = np.searchsorted(normal_N, score_A, side="left")
        not_above_A = np.searchsorted(normal_N, score_A, side="right")
        twice_won += int(below_A.sum()) + int(not_above_A.sum())
        hits_A = anomalous - np.searchsorted(anomalous_A, score_A, side="left")
        chosen_A = hits_A + (normal - below_A)
        # Each anomalous score raises the recall by 1 / A, at the precision its group of ties has.
        precision_sum += float((hits_A / chosen_A).sum())
        f1max = max(f1max, float((2 * hits_A / (anomalous + chosen_A)).max()))
    return Ranking(twice_won / (2 * normal * anomalous), precision_sum / anomalous, f1max)


def aupro(normal_N: Floats, anomalous_A: Floats, region_A: NDArray[np.int32], size_R: NDArray[np.int64]) -> float:
    """Area under the per-region overlap curve up to a false-positive rate of 0.3, divided by 0.3.

    MVTec AD's definition: the curve has a point at every distinct score, starts at (0, 0) and is joined by
    straight lines. An anomalous pixel raises it by 1 / (R * its region's size), along a ramp as wide as the
    share of normal pixels that have the very same score; the area is the sum of these ramps' areas.

    Args:
        normal_N: scores of normal pixels, sorted ascending; at least one.
        anomalous_A: scores of anomalous pixels, in any order; at least one.
        region_A: the region of each anomalous pixel, 0 to R - 1.
        size_R: pixels of each region.

    Raises:
        ValueError: NaN in the scores.
    """
    _refuse_nan(normal_N, anomalous_A)
    area = 0.0
    for block in blocks(len(anomalous_A)):
        order_A = np.argsort(anomalous_A[block])  # neighbouring searches then touch neighbouring memory
        score_A, weight_A = anomalous_A[block][order_A], 1.0 / size_R[region_A[block][order_A]]
        start_A = 1.0 - np.searchsorted(normal_N, score_A, side="right") / len(normal_N)
        end_A = 1.0 - np.searchsorted(normal_N, score_A, side="left") / len(normal_N)
        area += float((weight_A * _ramp_area(start_A, end_A)).sum())
    return area / (len(size_R) * FPR_LIMIT)


def _ramp_area(start_A: NDArray[np.float64], end_A: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area, left of FPR_LIMIT, under a line from 0 at ``start_A`` to 1 at ``end_A`` that then stays at 1."""
    rising_A = np.clip(FPR_LIMIT, start_A, end_A) - start_A
    width_A = np.where(end_A > start_A, end_A - start_A, 1.0)
    flat_A = np.maximum(FPR_LIMIT - end_A, 0.0)
    return 0.5 * rising_A**2 / width_A + flat_A


def aupro_sampled(
    normal_N: Floats, anomalous_A: Floats, region_A: NDArray[np.int32], size_R: NDArray[np.int64]
) -> float:
    """AUPRO from 99 thresholds instead of all: UniMMAD's published numbers. Arguments as for :func:`aupro`.

    Thresholds are the normal scores at 99 equidistant positions; a region's overlap counts scores strictly
    above the threshold; the curve is closed by (1, 1).

    Raises:
        ValueError: NaN in the scores.
    """
    _refuse_nan(normal_N, anomalous_A)
    position_T = np.linspace(0, len(normal_N) - 1, num=SAMPLED_THRESHOLDS, dtype=np.int64)
    threshold_T = normal_N[position_T]
    passed_weight_T1 = np.zeros(SAMPLED_THRESHOLDS + 1)
    for block in blocks(len(anomalous_A)):
        passed_A = np.searchsorted(threshold_T, anomalous_A[block], side="left")
        weight_A = 1.0 / size_R[region_A[block]]
        passed_weight_T1 += np.bincount(passed_A, weights=weight_A, minlength=SAMPLED_THRESHOLDS + 1)
    # A score is above threshold t when it passed more than t thresholds.
    overlap_T = np.cumsum(passed_weight_T1[::-1])[:-1] / len(size_R)
    fpr_T = 1.0 - (position_T[::-1] + 1) / len(normal_N)
    return _area_to_limit(np.append(fpr_T, 1.0), np.append(overlap_T, 1.0))


def _refuse_nan(normal_N: Floats, anomalous_A: Floats) -> None:
    """Of ``normal_N``, sorted, NaN would be the last."""
    if np.isnan(normal_N[-1:]).any() or (len(anomalous_A) and np.isnan(anomalous_A.max())):
        raise ValueError("a score is NaN, which has no place in an order; check the model's weights and the images")


def _area_to_limit(x_P: NDArray[np.float64], y_P: NDArray[np.float64]) -> float:
    """Area under the polyline up to FPR_LIMIT, divided by it; ``x_P`` never decreases and ends beyond it."""
    first_beyond = int(np.searchsorted(x_P, FPR_LIMIT, side="right"))
    x_left, x_right = x_P[first_beyond - 1], x_P[first_beyond]
    share = (FPR_LIMIT - x_left) / (x_right - x_left)
    y_cut = y_P[first_beyond - 1] + share * (y_P[first_beyond] - y_P[first_beyond - 1])
    x_C = np.append(x_P[:first_beyond], FPR_LIMIT)
    y_C = np.append(y_P[:first_beyond], y_cut)
    return float(np.trapezoid(y_C, x_C)) / FPR_LIMIT
