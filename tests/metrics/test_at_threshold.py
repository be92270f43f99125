"""Counts at a threshold, against a reference that walks over pixels one by one; and what regions leave out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import f1_score

from unimmad.metrics.at_threshold import SIZE_NAMES, AtThreshold, Spread, count_image, joined
from unimmad.metrics.metrics import MetricAccumulator

SHAPE = (31, 40)
SHARES = ("image_false_alarm_rate", "image_recall", "SegF1", "false_alarms_an_image", "defect_recall")


def components(marked):
    """8-connected sets of (row, column), found by walking from pixel to pixel."""
    left = {tuple(place) for place in np.argwhere(marked).tolist()}
    found = []
    while left:
        waiting, region = [left.pop()], set()
        while waiting:
            row, column = waiting.pop()
            region.add((row, column))
            for step in itertools.product((-1, 0, 1), repeat=2):
                neighbour = (row + step[0], column + step[1])
                if neighbour in left:
                    left.remove(neighbour)
                    waiting.append(neighbour)
        found.append(region)
    return found


def size_name(pixels):
    return SIZE_NAMES[sum(pixels >= side**2 for side in (4, 8, 16, 32))]


def reference(images, image_threshold, pixel_threshold):
    """All shares, of a list of (map, mask, score, label, look)."""
    truth, called, false_alarms, segmented = [], [], 0, 0
    found = {name: [] for name in SIZE_NAMES}
    for map_HW, mask_HW, _, _, look_HW in images:
        if mask_HW is None:
            continue
        segmented += 1
        look = np.ones(map_HW.shape, bool) if look_HW is None else look_HW > 0
        marked, above = (mask_HW > 0) & look, (map_HW > pixel_threshold) & look
        truth.append(marked[look])
        called.append(above[look])
        false_alarms += sum(not any(marked[place] for place in region) for region in components(above))
        for region in components(marked):
            found[size_name(len(region))].append(any(above[place] for place in region))
    every = [one for of_size in found.values() for one in of_size]
    normal = [score > image_threshold for _, _, score, label, _ in images if not label]
    anomalous = [score > image_threshold for _, _, score, label, _ in images if label]
    return {
        "image_false_alarm_rate": np.mean(normal),
        "image_recall": np.mean(anomalous),
        "SegF1": f1_score(np.concatenate(truth), np.concatenate(called)),
        "false_alarms_an_image": false_alarms / segmented,
        "defect_recall": np.mean(every),
        "defect_recall_by_size": [np.mean(of_size) if of_size else None for of_size in found.values()],
    }


def invented(seed, with_look):
    """Images with defects of one pixel to a quarter of the image; the first two are normal, the last has no mask."""
    rng = np.random.default_rng(seed)
    images = []
    for number, growth in enumerate((0, 0, 1, 2, 4, 9, 3)):
        seeds = rng.random(SHAPE) > (1 if number < 2 else 0.998)
        seeds[rng.integers(31), rng.integers(40)] |= number >= 2
        mask_HW = ndimage.binary_dilation(seeds, iterations=growth) if growth else seeds
        map_HW = ndimage.gaussian_filter(rng.normal(size=SHAPE), 1) + 0.5 * (mask_HW & (rng.random(SHAPE) < 0.3))
        map_HW = np.round(map_HW.astype(np.float32), 1)  # values that equal the threshold
        look_HW = ndimage.gaussian_filter(rng.random(SHAPE), 4) > 0.49 if with_look and number % 2 else None
        mask = None if number == 6 else mask_HW
        images.append((map_HW, mask, float(map_HW.max()), int(number >= 2), look_HW))
    return images


@pytest.mark.parametrize("with_look", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_reference_in_any_order(seed, with_look):
    images = invented(seed, with_look)
    thresholds = float(np.float32(0.9)), float(np.float32(0.3))
    counts = [count_image(*image[:4], *thresholds, image[4]) for image in images]
    expected = reference(images, *thresholds)
    total = joined(counts)
    assert {name: total.entry()[name] for name in expected} == {
        name: pytest.approx(value, abs=1e-12) for name, value in expected.items()
    }
    assert joined([None, *reversed(counts)]) == total
    assert sum(total.defects) > 4
    assert (total.segmented, total.undecided, total.normal + total.anomalous) == (6, 0, 7)


def test_sizes_and_thresholds_at_their_limits():
    mask_HW, map_HW = np.zeros((64, 80), bool), np.zeros((64, 80), np.float32)
    for left, rows, columns in ((0, 3, 5), (6, 4, 4), (12, 8, 8), (22, 16, 16), (40, 32, 32)):
        mask_HW[:rows, left : left + columns] = True
    map_HW[0, [0, 6, 12, 22, 40]] = 1, 2, 2, 2, 2  # one pixel of each; the first only equals the threshold
    map_HW[50:52, 10:12] = map_HW[60, 70] = 3
    found = count_image(map_HW, mask_HW, 2.0, 1, 2.0, 1.0)
    assert found.defects == (1, 1, 1, 1, 1)
    assert found.defects_found == (0, 1, 1, 1, 1)
    assert (found.false_regions, found.pixels_hit, found.pixels_false) == (2, 4, 5)
    assert (found.anomalous, found.anomalous_above) == (1, 0)  # a score that equals the threshold is normal


def test_what_is_not_defined():
    empty = AtThreshold()
    assert {empty.entry()[name] for name in SHARES} == {None}
    assert joined([]) is None
    undecided = count_image(np.ones((2, 2)), np.zeros((2, 2)), 5.0, 0, None, None)
    assert undecided == AtThreshold(undecided=1)
    normal = count_image(np.ones((2, 2)), np.zeros((2, 2)), 5.0, 0, 1.0, 0.5)
    assert (normal.seg_f1, normal.false_alarms_an_image, normal.image_false_alarm_rate) == (None, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"where to look has shape \(3, 2\)"):
        count_image(np.ones((2, 2)), np.zeros((2, 2)), 5.0, 0, 1.0, 0.5, np.ones((3, 2)))


def test_the_spread_of_pieces_is_that_of_the_whole():
    values = np.random.default_rng(0).normal(loc=1000, size=3000).astype(np.float32)
    spread = Spread()
    for piece in (values[:7], values[7:7], values[7:2000], values[2000:]):
        spread = spread.joined(Spread.of(piece))
    wide = values.astype(np.float64)
    assert spread.threshold() == pytest.approx(wide.mean() + 3 * wide.std(), rel=1e-12)
    assert Spread().joined(Spread()).threshold() is None


@pytest.mark.parametrize("with_mask", [False, True])
def test_pixels_that_are_not_looked_at_are_in_no_metric(with_mask):
    """The metrics of cut-out pixels are those of images that consist of the others alone."""
    rng = np.random.default_rng(1)
    whole, cut = MetricAccumulator(), MetricAccumulator()
    for label in (0, 1, 1):
        map_HW = np.round(rng.normal(size=(12, 20)), 1)
        mask_HW = (rng.random((12, 20)) > 0.8) if label and with_mask else np.zeros((12, 20))
        look_HW = np.zeros((12, 20))
        look_HW[2:9, 3:] = 0.25  # any weight above 0
        whole.add(map_HW, mask_HW, 1.0, label, look_HW=look_HW)
        cut.add(map_HW[2:9, 3:], mask_HW[2:9, 3:], 1.0, label)
    assert whole.compute() == cut.compute()
    with pytest.raises(ValueError, match=r"image 3 .*where to look has shape \(2,\)"):
        whole.add(map_HW, mask_HW, 1.0, 1, look_HW=np.ones(2))
