"""The pixel curves that the accumulator gives, against counting pixel by pixel."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage

from unimmad.metrics.curve_points import MOST_POINTS
from unimmad.metrics.metrics import MetricAccumulator
from unimmad.report.scored_class import CurvesEntry, curves_entry, read_curves


def collected(images=4, shape=(24, 30), levels=40, seed=0):
    """An accumulator with its maps and masks; ``levels`` distinct scores or so."""
    rng = np.random.default_rng(seed)
    metrics, maps, masks = MetricAccumulator(), [], []
    for number in range(images):
        mask_HW = ndimage.binary_dilation(rng.random(shape) > 0.99, iterations=2) if number else np.zeros(shape, bool)
        map_HW = np.round((rng.random(shape) + 0.5 * mask_HW) * levels).astype(np.float32) / levels
        metrics.add(map_HW, mask_HW, float(map_HW.max()), int(number > 0))
        maps.append(map_HW)
        masks.append(mask_HW)
    return metrics, np.stack(maps), np.stack(masks)


def naive_pro(maps, masks, threshold):
    shares = []
    for map_HW, mask_HW in zip(maps, masks, strict=True):
        labels_HW, regions = ndimage.label(mask_HW, np.ones((3, 3)))
        shares += [(map_HW[labels_HW == region] >= threshold).mean() for region in range(1, regions + 1)]
    return np.mean(shares)


def test_points_are_exact_at_every_score_when_there_are_few():
    metrics, maps, masks = collected(levels=12)
    found = metrics.curves()
    threshold_T = np.unique(maps)[::-1]
    np.testing.assert_allclose(found.fpr, [0, *((maps[~masks] >= t).mean() for t in threshold_T)], atol=1e-12)
    np.testing.assert_allclose(found.tpr, [0, *((maps[masks] >= t).mean() for t in threshold_T)], atol=1e-12)
    np.testing.assert_allclose(found.pro, [0, *(naive_pro(maps, masks, t) for t in threshold_T)], atol=1e-12)


def test_areas_under_many_points_are_the_metrics():
    metrics, *_ = collected(levels=10**6)
    found, values = metrics.curves(), metrics.compute()
    assert len(found.fpr) <= MOST_POINTS
    assert np.trapezoid(found.tpr, found.fpr) == pytest.approx(values["P-AUROC"], abs=2e-3)
    fpr = np.append(found.fpr[found.fpr < 0.3], 0.3)
    pro = np.append(found.pro[found.fpr < 0.3], np.interp(0.3, found.fpr, found.pro))
    assert np.trapezoid(pro, fpr) / 0.3 == pytest.approx(values["AUPRO"], abs=5e-3)


def test_the_threshold_reaches_f1max():
    metrics, maps, masks = collected()
    above = maps >= np.float32(metrics.curves().threshold)
    f1 = 2 * (above & masks).sum() / (above.sum() + masks.sum())
    assert f1 == pytest.approx(metrics.compute()["P-F1max"], abs=1e-12)


def test_blocks_change_no_curve(monkeypatch):
    metrics, *_ = collected()
    whole = metrics.curves()
    monkeypatch.setattr("unimmad.metrics.append_buffer.BLOCK", 7)
    np.testing.assert_allclose(metrics.curves().pro, whole.pro, atol=1e-12)


def test_curves_change_no_metric():
    metrics, *_ = collected()
    before = metrics.compute()
    metrics.curves()
    assert metrics.compute() == before


def test_without_a_label_there_are_none_and_images_without_a_mask_are_left_out():
    metrics, *_ = collected()
    metrics.add(np.zeros((2, 2)), None, 0.0, 1)
    np.testing.assert_array_equal(metrics.curves().tpr, collected()[0].curves().tpr)
    assert collected(images=1)[0].curves() is None
    assert MetricAccumulator().curves() is None


def test_curves_survive_json():
    before = collected()[0].curves()
    after = read_curves(CurvesEntry.model_validate(json.loads(json.dumps(curves_entry(before)))))
    for name in ("fpr", "tpr", "pro"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    for ours, theirs in zip(after.histogram, before.histogram, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert after.threshold == before.threshold
