"""Points of curves against their definitions, and histograms and thresholds against counting."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from unimmad.metrics.curve_points import MOST_POINTS, f1max_threshold, histogram, roc_points, spread_thresholds


def sorted_scores(normal, anomalous, levels=None, seed=0):
    """Scores of both labels, sorted; ``levels``: rounded to so many values, for ties."""
    rng = np.random.default_rng(seed)
    both = [rng.normal(0, 1, normal), rng.normal(1, 1, anomalous)]
    return tuple(np.sort(np.round(scores * levels) / levels if levels else scores) for scores in both)


@pytest.mark.parametrize("levels", [None, 2])
def test_few_scores_give_every_corner_of_the_roc_curve(levels):
    normal_N, anomalous_A = sorted_scores(40, 30, levels)
    labels = np.repeat([0, 1], [40, 30])
    fpr_P, tpr_P, _ = roc_curve(labels, np.concatenate([normal_N, anomalous_A]), drop_intermediate=False)
    found = roc_points(normal_N, anomalous_A)
    np.testing.assert_allclose(found.fpr_P, fpr_P, atol=1e-12)
    np.testing.assert_allclose(found.value_P, tpr_P, atol=1e-12)


def test_many_scores_give_few_exact_points_from_corner_to_corner():
    normal_N, anomalous_A = sorted_scores(20_000, 3_000)
    found = roc_points(normal_N, anomalous_A)
    assert 300 < len(found.fpr_P) <= MOST_POINTS
    assert (found.fpr_P[0], found.value_P[0]) == (0, 0)
    assert (found.fpr_P[-1], found.value_P[-1]) == (1, 1)
    for values in found:
        assert (np.diff(values) >= 0).all()
    # The curve is where it should be: a point is exact when the scores above it are counted.
    points = zip(spread_thresholds(normal_N, anomalous_A), found.fpr_P[1:], found.value_P[1:], strict=True)
    for threshold, fpr, tpr in points:
        assert fpr == pytest.approx((normal_N >= threshold).mean(), abs=1e-12)
        assert tpr == pytest.approx((anomalous_A >= threshold).mean(), abs=1e-12)
    area = np.trapezoid(found.value_P, found.fpr_P)
    wins = np.searchsorted(normal_N, anomalous_A).mean() / len(normal_N)
    assert area == pytest.approx(wins, abs=1e-3)


@pytest.mark.parametrize("levels", [None, 2])
def test_the_f1max_threshold_is_the_lowest_best_one(levels):
    normal_N, anomalous_A = sorted_scores(50, 20, levels)
    scores = np.concatenate([normal_N, anomalous_A])
    f1 = {}
    for threshold in np.unique(scores):
        hits, alarms = (anomalous_A >= threshold).sum(), (scores >= threshold).sum()
        f1[threshold] = 2 * hits / (20 + alarms)
    best = min(threshold for threshold, value in f1.items() if value == max(f1.values()))
    assert f1max_threshold(normal_N, anomalous_A) == best


def test_blocks_change_no_threshold(monkeypatch):
    normal_N, anomalous_A = sorted_scores(50, 20)
    whole = f1max_threshold(normal_N, anomalous_A)
    monkeypatch.setattr("unimmad.metrics.append_buffer.BLOCK", 3)
    assert f1max_threshold(normal_N, anomalous_A) == whole


def test_a_histogram_holds_every_score():
    normal_N, anomalous_A = sorted_scores(200, 100)
    found = histogram(normal_N, anomalous_A, bins=10)
    assert found.edge_B1[0] == min(normal_N[0], anomalous_A[0])
    assert found.edge_B1[-1] == max(normal_N[-1], anomalous_A[-1])
    np.testing.assert_allclose(found.normal_B, np.histogram(normal_N, found.edge_B1)[0] / 200)
    np.testing.assert_allclose(found.anomalous_B, np.histogram(anomalous_A, found.edge_B1)[0] / 100)


def test_infinite_scores_count_in_the_outer_bins():
    found = histogram(np.array([-np.inf, 0.0, 1.0]), np.array([2.0, np.inf]), bins=4)
    assert (found.edge_B1[0], found.edge_B1[-1]) == (0, 2)
    np.testing.assert_allclose(found.normal_B, [2 / 3, 0, 1 / 3, 0])
    np.testing.assert_allclose(found.anomalous_B, [0, 0, 0, 1])


def test_a_missing_label_and_one_single_score_have_a_histogram():
    found = histogram(np.array([5.0, 5.0]), np.empty(0), bins=4)
    assert found.normal_B.sum() == 1
    assert found.anomalous_B.sum() == 0
    assert (np.diff(found.edge_B1) > 0).all()
    assert np.isfinite(histogram(np.array([np.inf]), np.empty(0)).edge_B1).all()
