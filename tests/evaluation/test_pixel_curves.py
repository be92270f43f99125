"""Curves for drawing: points of the true curves, with both ends."""

from __future__ import annotations

import numpy as np
import pytest

from unimmad.evaluation.metrics import MetricAccumulator
from unimmad.evaluation.pixel_curves import CURVE_POINTS


def collected(levels=None, seed=0):
    rng = np.random.default_rng(seed)
    accumulator, maps, masks = MetricAccumulator(), [], []
    for label in (0, 1, 1):
        mask = np.zeros((40, 50), bool)
        if label:
            mask[3:9, 5:20] = mask[20:22, 1:40] = True
        scores = (rng.normal(size=mask.shape) + 1.5 * mask).astype(np.float32)
        scores = scores if levels is None else np.round(scores * levels)
        accumulator.add(scores, mask, 0.0, label)
        maps.append(scores)
        masks.append(mask)
    return accumulator, maps, masks


@pytest.mark.parametrize("levels", [None, 1])
def test_every_point_lies_on_the_curves(levels):
    accumulator, maps, masks = collected(levels)
    curves = accumulator.curves()
    scores, truth = np.concatenate(maps), np.concatenate(masks)
    regions = [
        (m, s)
        for m, mask in zip(maps, masks, strict=True)
        for s in (np.s_[3:9, 5:20], np.s_[20:22, 1:40])
        if mask.any()
    ]
    thresholds = np.append(np.unique(scores)[::-1], -np.inf)
    true_points = {
        round((scores[~truth] >= t).mean(), 9): (
            (scores[truth] >= t).mean(),
            np.mean([(m[s] >= t).mean() for m, s in regions]),
        )
        for t in thresholds
        if t in scores[~truth]
    }
    for fpr, tpr, pro in zip(curves.fpr[1:-1], curves.tpr[1:-1], curves.pro[1:-1], strict=True):
        assert (tpr, pro) == pytest.approx(true_points[round(fpr, 9)], abs=1e-9)


def test_they_run_from_0_to_1_and_are_dense_near_0():
    curves = collected()[0].curves()
    for values in (curves.fpr, curves.tpr, curves.pro):
        assert (values[0], values[-1]) == (0.0, 1.0)
        assert (np.diff(values) >= 0).all()
    assert len(curves.fpr) <= CURVE_POINTS + 2
    assert (curves.fpr < 0.3).mean() > 0.5


def test_the_area_under_them_is_close_to_the_exact_metric():
    accumulator = collected()[0]
    curves = accumulator.curves()
    assert np.trapezoid(curves.tpr, curves.fpr) == pytest.approx(accumulator.compute()["P-AUROC"], abs=0.005)


def test_there_are_none_without_regions_or_masks():
    normal_only, no_mask = MetricAccumulator(), MetricAccumulator()
    normal_only.add(np.ones((3, 3)), np.zeros((3, 3)), 0.0, 0)
    no_mask.add(np.ones((3, 3)), None, 0.0, 1)
    assert normal_only.curves() is no_mask.curves() is None
