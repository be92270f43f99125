"""The curves behind the pixel metrics, for drawing: exact points, though not all of them.

Letters: N normal scores, A anomalous scores, R regions, P points, T thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unimmad.metrics.append_buffer import blocks
from unimmad.metrics.curve_points import (
    Floats,
    Histogram,
    f1max_threshold,
    from_zero,
    histogram,
    share_at_or_above,
    spread_thresholds,
)


@dataclass(frozen=True)
class PixelCurves:
    """What is drawn of the pooled pixels of one class. Curves are float64 [P], never decreasing, from 0 to 1."""

    fpr: NDArray[np.float64]
    """Share of all normal pixels at or above a threshold."""
    tpr: NDArray[np.float64]
    """Share of all anomalous pixels at or above it: the ROC curve."""
    pro: NDArray[np.float64]
    """Mean over regions of the share of the region at or above it: the PRO curve."""
    histogram: Histogram
    threshold: float
    """The pixel score at which P-F1max is reached; the lowest where there are several."""


def pixel_curves(
    normal_N: Floats,
    sorted_A: Floats,
    anomalous_A: Floats,
    region_A: NDArray[np.int32],
    size_R: NDArray[np.int64],
) -> PixelCurves:
    """Everything at once, from at least one pixel of each label.

    Args:
        normal_N: scores of normal pixels, sorted ascending.
        sorted_A: scores of anomalous pixels, sorted ascending.
        anomalous_A: the same, in any order.
        region_A: the region of each anomalous pixel, 0 to R - 1.
        size_R: pixels of each region.
    """
    threshold_T = spread_thresholds(normal_N, sorted_A)
    return PixelCurves(
        fpr=from_zero(share_at_or_above(normal_N, threshold_T)),
        tpr=from_zero(share_at_or_above(sorted_A, threshold_T)),
        pro=from_zero(_overlaps(anomalous_A, region_A, size_R, threshold_T)),
        histogram=histogram(normal_N, sorted_A),
        threshold=f1max_threshold(normal_N, sorted_A),
    )


def _overlaps(
    anomalous_A: Floats, region_A: NDArray[np.int32], size_R: NDArray[np.int64], threshold_T: Floats
) -> NDArray[np.float64]:
    """Mean over regions of the share of the region at or above each threshold (largest first)."""
    ascending_T = threshold_T[::-1]
    passed_weight_T1 = np.zeros(len(threshold_T) + 1)
    for block in blocks(len(anomalous_A)):
        passed_A = np.searchsorted(ascending_T, anomalous_A[block], side="right")
        weight_A = 1.0 / size_R[region_A[block]]
        passed_weight_T1 += np.bincount(passed_A, weights=weight_A, minlength=len(passed_weight_T1))
    # A score is at or above ascending threshold t when it passed more than t of them.
    return np.cumsum(passed_weight_T1[::-1])[:-1] / len(size_R)
