"""The curves behind the pixel metrics, thinned out for drawing.

Letters: P points, N normal scores, A anomalous scores, R regions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unimmad.evaluation.growing import blocks

CURVE_POINTS = 300


@dataclass(frozen=True)
class PixelCurves:
    """Of one class, with false-positive rates ascending from 0 to 1, close together near 0. All float64 [P]."""

    fpr: NDArray[np.float64]
    """Share of all normal pixels at or above a threshold."""
    tpr: NDArray[np.float64]
    """Share of all anomalous pixels at or above it: the ROC curve."""
    pro: NDArray[np.float64]
    """Mean over regions of the share of the region at or above it: the PRO curve."""


def pixel_curves(
    normal_N: NDArray[np.floating],
    anomalous_A: NDArray[np.floating],
    region_A: NDArray[np.int32],
    size_R: NDArray[np.int64],
) -> PixelCurves:
    """Points of the curves at ``CURVE_POINTS`` normal scores as thresholds, and at both ends.

    Args:
        normal_N: scores of normal pixels, sorted ascending; at least one.
        anomalous_A: scores of anomalous pixels, in any order; at least one.
        region_A: the region of each anomalous pixel, 0 to R - 1.
        size_R: pixels of each region.
    """
    share_P = np.linspace(1, 0, CURVE_POINTS) ** 2  # of normal pixels above the threshold
    place_P = ((1 - share_P) * (len(normal_N) - 1)).astype(np.int64)
    threshold_P = np.unique(normal_N[place_P])
    fpr_P = 1 - np.searchsorted(normal_N, threshold_P, side="left") / len(normal_N)
    hits_P = np.zeros(len(threshold_P) + 1)
    overlap_P = np.zeros(len(threshold_P) + 1)
    for block in blocks(len(anomalous_A)):
        passed_A = np.searchsorted(threshold_P, anomalous_A[block], side="right")
        hits_P += np.bincount(passed_A, minlength=len(hits_P))
        overlap_P += np.bincount(passed_A, weights=1.0 / size_R[region_A[block]], minlength=len(hits_P))
    # A score is at or above threshold t when it passed more than t thresholds.
    tpr_P = np.cumsum(hits_P[::-1])[:-1] / len(anomalous_A)
    pro_P = np.cumsum(overlap_P[::-1])[:-1] / len(size_R)
    ends = np.zeros(1), np.ones(1)
    fpr_P, tpr_P, pro_P = (np.concatenate([ends[0], values_P, ends[1]]) for values_P in (fpr_P[::-1], tpr_P, pro_P))
    return PixelCurves(fpr_P, np.minimum(tpr_P, 1.0), np.minimum(pro_P, 1.0))
