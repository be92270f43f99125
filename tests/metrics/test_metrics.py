from __future__ import annotations

import naive_metrics
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from unimmad.metrics import append_buffer as growing
from unimmad.metrics.curves import aupro, aupro_sampled, ranking_metrics
from unimmad.metrics.metrics import METRIC_KEYS, MetricAccumulator, evaluate

INF = np.inf


def blobs(rng, height, width, share):
    """A mask of scattered pixels and rectangles: many regions, some touching at corners only."""
    mask = rng.random((height, width)) < share
    row, column = rng.integers(height), rng.integers(width)
    mask[row : row + 3, column : column + 4] = True
    return mask.astype(np.uint8) * 255


def invented(seed, images=5, sizes=((12, 17),), levels=None, share=0.05):
    """Maps, masks, scores and labels; ``levels`` is how many distinct scores there are (None: no ties)."""
    rng = np.random.default_rng(seed)
    maps, masks, labels = [], [], []
    for number in range(images):
        height, width = sizes[number % len(sizes)]
        label = number % 2
        mask = blobs(rng, height, width, share) if label else np.zeros((height, width), np.uint8)
        scores = rng.normal(size=(height, width)) + 1.2 * (mask > 0)
        if levels is not None:
            scores = np.round(scores * levels / 4)
        maps.append(scores.astype(np.float32))
        masks.append(mask)
        labels.append(label)
    image_scores = [float(scores.max()) for scores in maps]
    return maps, masks, image_scores, labels


def flat(value, shape=(6, 9)):
    return np.full(shape, value, np.float32)


def half_mask(shape=(6, 9)):
    mask = np.zeros(shape, bool)
    mask[:, : shape[1] // 2] = True
    return mask


def assert_as_defined(maps, masks, scores, labels):
    expected = naive_metrics.evaluate(maps, masks, scores, labels)
    found = evaluate(maps, masks, scores, labels)
    assert tuple(found) == METRIC_KEYS
    for key in METRIC_KEYS:
        if expected[key] is None:
            assert found[key] is None, key
        else:
            assert found[key] == pytest.approx(expected[key], abs=1e-9), key
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [None, 2, 7, 40])
def test_equals_the_definition_with_and_without_ties(seed, levels):
    assert_as_defined(*invented(seed, levels=levels))


def test_ragged_and_non_square_images():
    assert_as_defined(*invented(5, images=7, sizes=((8, 21), (13, 5), (1, 30)), levels=12))


@pytest.mark.parametrize("images", [1, 2])
def test_very_few_images(images):
    maps, masks, scores, _ = invented(6, images=2)
    assert_as_defined(maps[-images:], masks[-images:], scores[-images:], [0, 1][-images:])


def test_constant_maps():
    found = assert_as_defined([flat(2.5)] * 3, [half_mask()] * 2 + [flat(0)], [1.0] * 3, [1, 1, 0])
    assert found["P-AUROC"] == pytest.approx(0.5)
    assert found["AUPRO"] == pytest.approx(0.15)  # the diagonal up to 0.3


def test_perfect_maps_reach_one():
    mask = half_mask()
    found = assert_as_defined([mask.astype(np.float32), flat(0)], [mask, flat(0)], [1.0, 0.0], [1, 0])
    exact = {key: value for key, value in found.items() if key != "AUPRO-99"}
    assert all(value == pytest.approx(1.0) for value in exact.values())


def test_all_normal_leaves_everything_undefined():
    found = assert_as_defined([flat(1), flat(2)], [flat(0)] * 2, [1.0, 2.0], [0, 0])
    assert set(found.values()) == {None}


def test_all_anomalous():
    found = assert_as_defined([flat(1), flat(2)], [flat(1)] * 2, [1.0, 2.0], [1, 1])
    assert found["I-AP"] == found["P-AP"] == found["P-F1max"] == 1.0
    assert found["I-AUROC"] is found["P-AUROC"] is found["AUPRO"] is found["AUPRO-99"] is None


def test_anomalous_image_with_an_empty_mask():
    found = assert_as_defined([flat(1), flat(2)], [flat(0)] * 2, [1.0, 2.0], [0, 1])
    assert found["I-AUROC"] == 1.0
    assert found["P-AP"] is None


def test_signed_zeros_are_equal():
    rng = np.random.default_rng(0)
    maps, masks, scores, labels = invented(8, levels=2)
    signed = [np.where((m == 0) & (rng.random(m.shape) < 0.5), np.float32(-0.0), m) for m in maps]
    assert any(np.signbit(m[m == 0]).any() for m in signed)
    assert_as_defined(signed, masks, scores, labels)
    assert evaluate(signed, masks, [-0.0, 0.0] * 2 + [0.0], labels)["I-AUROC"] == 0.5


def test_infinities_sort_as_largest_and_smallest():
    rng = np.random.default_rng(1)
    maps, masks, _, labels = invented(9, levels=10)
    infinite = [np.where(rng.random(m.shape) < 0.1, rng.choice([INF, -INF], m.shape), m) for m in maps]
    finite = [np.clip(m, -1e6, 1e6) for m in infinite]
    found = assert_as_defined(infinite, masks, [INF, INF, -INF, 0.0, 1.0], labels)
    assert found == evaluate(finite, masks, [1e6, 1e6, -1e6, 0.0, 1.0], labels)
    assert all(np.isfinite(value) for value in found.values())


def test_large_offsets_are_not_squashed():
    maps, masks, scores, labels = invented(10, levels=50)
    shifted = [m + 1000 for m in maps]
    assert evaluate(shifted, masks, scores, labels) == evaluate(maps, masks, scores, labels)


def test_66_000_regions():
    """More than 16 bits can number. Each region is one pixel, so the PRO curve is the ROC curve."""
    rng = np.random.default_rng(3)
    masks = [np.zeros((520, 520), bool) for _ in range(2)]
    for mask in masks:
        mask[::2, ::2] = rng.random((260, 260)) < 0.5
    masks[0][::2, ::2] = True
    # A shuffled count: no ties, so the ROC curve is a staircase, and exact in float32.
    order = rng.permutation(2 * 520 * 520).astype(np.float32).reshape(2, 520, 520)
    maps = [np.where(mask, scores + 90_000.5, scores) for mask, scores in zip(masks, order, strict=True)]
    truth, scores = np.stack(masks), np.stack(maps).astype(np.float64)
    regions, normal = np.sort(scores[truth]), np.sort(scores[~truth])
    assert len(regions) > 66_000
    assert len(np.unique(regions)) + len(np.unique(normal)) == scores.size
    overlap = 1 - np.searchsorted(regions, normal[::-1]) / len(regions)
    width = np.diff(np.minimum(np.arange(len(normal) + 1) / len(normal), 0.3))
    found = evaluate(maps, masks, [0.0, 1.0], [0, 1])
    assert found["AUPRO"] == pytest.approx((width * overlap).sum() / 0.3, abs=1e-9)
    assert found["P-AUROC"] == pytest.approx(overlap.mean(), abs=1e-9)


@pytest.mark.parametrize("outlier", [1e30, -1e30, 3e38])
def test_outliers_change_ranks_only(outlier):
    maps, masks, scores, labels = invented(15, levels=20)
    maps[0][2, 3] = maps[1][4, 5] = outlier
    scores[2] = outlier
    found = assert_as_defined(maps, masks, scores, labels)
    maps[0][2, 3] = maps[1][4, 5] = scores[2] = np.sign(outlier) * 1000
    assert evaluate(maps, masks, scores, labels) == found


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_scores_of_any_scale(scale):
    maps, masks, scores, labels = invented(16, levels=16)
    scaled = [m * np.float32(2.0 ** round(np.log2(scale))) for m in maps]
    assert_as_defined(scaled, masks, scores, labels)
    assert evaluate(scaled, masks, [s * scale for s in scores], labels) == evaluate(maps, masks, scores, labels)


def test_many_accumulators_merge_in_any_order():
    images = list(zip(*invented(17, images=8, levels=12), strict=True))
    parts = []
    for start in (6, 0, 3):
        part = MetricAccumulator()
        for image in images[start : start + (2 if start == 6 else 3)]:
            part.add(*image)
        parts.append(part)
    merged = MetricAccumulator()
    for part in parts:
        merged.merge(part)
    whole = evaluate(*invented(17, images=8, levels=12))
    assert merged.compute() == pytest.approx(whole, abs=1e-12)


def test_regions_touching_at_a_corner_are_one():
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = mask[1, 1] = mask[1, 2] = True
    scores = np.arange(16, dtype=np.float32).reshape(4, 4)
    assert_as_defined([scores], [mask], [1.0], [1])


def test_blocks_do_not_change_the_numbers(monkeypatch):
    data = invented(11, levels=9, share=0.2)
    whole = evaluate(*data)
    monkeypatch.setattr(growing, "BLOCK", 7)
    assert evaluate(*data) == pytest.approx(whole, abs=1e-12)


def test_agrees_with_scikit_learn():
    maps, masks, scores, labels = invented(12, images=6, sizes=((40, 50),), levels=200)
    pixels, truth = np.concatenate(maps).ravel(), np.concatenate(masks).ravel() > 0
    found = evaluate(np.stack(maps), np.stack(masks), np.array(scores), np.array(labels))
    assert found["P-AUROC"] == pytest.approx(roc_auc_score(truth, pixels), abs=1e-9)
    assert found["P-AP"] == pytest.approx(average_precision_score(truth, pixels), abs=1e-9)
    assert found["I-AUROC"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-9)
    assert found["I-AP"] == pytest.approx(average_precision_score(labels, scores), abs=1e-9)


def test_pixel_metrics_leave_out_what_has_no_mask():
    maps, masks, scores, labels = invented(13)
    whole = evaluate(maps, masks, scores, labels)
    found = evaluate(maps, [masks[0], None, *masks[2:]], scores, labels)
    without = evaluate([maps[0], *maps[2:]], [masks[0], *masks[2:]], scores[:-1], labels[:-1])
    assert {key: found[key] for key in METRIC_KEYS[:3]} == {key: whole[key] for key in METRIC_KEYS[:3]}
    assert {key: found[key] for key in METRIC_KEYS[3:]} == {key: without[key] for key in METRIC_KEYS[3:]}
    no_defect = [mask if label == 0 else None for mask, label in zip(masks, labels, strict=True)]
    unmarked = evaluate(maps, no_defect, scores, labels)
    assert {unmarked[key] for key in METRIC_KEYS[3:]} == {None}


def test_merging_and_computing_in_between_change_nothing():
    data = invented(14, images=9, levels=20)
    images = list(zip(*data, strict=True))
    first, second = MetricAccumulator(), MetricAccumulator()
    for image in images[:4]:
        first.add(*image)
    first.compute()
    for image in images[4:]:
        second.add(*image)
    alone = second.compute()
    first.merge(second)
    assert first.compute() == pytest.approx(evaluate(*data), abs=1e-12)
    assert second.compute() == alone
    assert (first.normal, first.anomalous) == (5, 4)


def test_merging_leaves_out_what_has_no_mask():
    whole, part = MetricAccumulator(), MetricAccumulator()
    whole.add(flat(1), half_mask(), 1.0, 1)
    part.add(flat(9), None, 1.0, 1)
    before = whole.compute()
    whole.merge(part)
    assert (whole.anomalous, whole.compute()["P-AP"]) == (2, before["P-AP"])


def test_nothing_at_all():
    assert set(evaluate([], [], [], []).values()) == {None}


def test_nan_in_a_map_names_the_image():
    broken = flat(1)
    broken[2, 3] = np.nan
    with pytest.raises(ValueError, match=r"image 1 .*1 of 54 values .* NaN"):
        evaluate([flat(1), broken], [flat(0)] * 2, [0.0, 1.0], [0, 1])


def test_nan_image_score_names_the_image_and_nothing_is_kept():
    accumulator = MetricAccumulator()
    with pytest.raises(ValueError, match=r"image 0 \(bagel/007\): its score is NaN"):
        accumulator.add(flat(1), half_mask(), float("nan"), 1, name="bagel/007")
    mask_HW = half_mask().astype(float)
    mask_HW[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"image 0 \(bagel/007\): its mask has NaN"):
        accumulator.add(flat(1), mask_HW, 1.0, 1, name="bagel/007")
    accumulator.add(flat(1), flat(0), 0.0, 0)
    assert set(accumulator.compute().values()) == {None}


@pytest.mark.parametrize("label", ["normal", "anomalous"])
def test_curves_of_nan_are_refused(label):
    normal_N, anomalous_A = np.array([0.0, 1.0]), np.array([1.0, 2.0])
    (normal_N if label == "normal" else anomalous_A)[-1] = np.nan
    regions = (np.array([0, 0]), np.array([2]))
    for call in (
        lambda: ranking_metrics(normal_N, anomalous_A),
        lambda: aupro(normal_N, anomalous_A[::-1], *regions),
        lambda: aupro_sampled(normal_N, anomalous_A[::-1], *regions),
    ):
        with pytest.raises(ValueError, match="a score is NaN"):
            call()


@pytest.mark.parametrize(
    ("map_HW", "mask_HW", "label", "message"),
    [
        (flat(1), half_mask((9, 6)), 1, r"image 0 .*mask has shape \(9, 6\).*\(6, 9\)"),
        (np.zeros((1, 6, 9), np.float32), half_mask(), 1, r"image 0 .*shape \(1, 6, 9\)"),
        (flat(1), half_mask(), 2, r"image 0 .*label is 2"),
    ],
)
def test_unusable_images_are_refused(map_HW, mask_HW, label, message):
    with pytest.raises(ValueError, match=message):
        evaluate([map_HW], [mask_HW], [1.0], [label])


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="2 maps, 1 masks, 2 image_scores, 2 image_labels"):
        evaluate([flat(1)] * 2, [flat(0)], [0.0, 1.0], [0, 1])
