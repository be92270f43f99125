"""Thresholds with called images: the false-alarm rate stays as promised, whoever picks the images."""

from __future__ import annotations

import numpy as np
import pytest

from unimmad.checkpoint.conformal import conformal_threshold, thresholds_by_sensors
from unimmad.checkpoint.thresholds import Thresholds
from unimmad.inference.renewed_thresholds import renewed

CUP, SAW = "set/cup", "set/saw"
RGB, BOTH = ("rgb",), ("rgb", "depth")


def thresholds(scores: dict[str, dict[tuple[str, ...], list[float]]], rate: float) -> Thresholds:
    return thresholds_by_sensors(scores, {}, tuple(scores), rate, "fp32", scores)


PICKS = {
    "false alarms": lambda later, value: later[later > value],
    "easy ones": lambda later, value: later[later < np.median(later)],
    "those just below": lambda later, value: later[(later <= value) & (later > 0.8 * value)],
    "all": lambda later, value: later,
}


@pytest.mark.parametrize("whose", PICKS)
def test_a_simulated_line_never_has_more_false_alarms_than_promised(whose):
    """Over many lines: calibration, a first run of images of which some are picked, and the share of all later ones
    above the threshold, which for uniform scores is known."""
    rng, rate, lines = np.random.default_rng(0), 0.1, 400
    kept, plain = [], []
    for _ in range(lines):
        calibrated, later = rng.random(39), rng.random(100)
        old = thresholds({CUP: {RGB: calibrated.tolist()}}, rate)
        picked = PICKS[whose](later, old.classes[CUP].value)
        new = renewed(old, {CUP: {RGB: calibrated.tolist()}}, {CUP: {RGB: picked.tolist()}})
        assert new.classes[CUP].value >= old.classes[CUP].value
        kept.append(1 - new.classes[CUP].value)
        plain.append(1 - conformal_threshold([*calibrated, *picked], rate).value)
    error = 3 * np.std(kept) / lines**0.5
    assert np.mean(kept) <= rate + error
    assert whose == "all" or error < 0.1 * rate, "a promise that is broken by a tenth would be seen"
    if whose == "easy ones":
        assert np.mean(kept) == pytest.approx(rate, abs=error), "they neither raise nor lower it"
    if whose == "easy ones":
        assert np.mean(plain) > 1.5 * rate, "what a plain pool of both would come to"


def test_whole_runs_count_in_full_and_bring_the_promise_down():
    rng, rate, lines = np.random.default_rng(1), 0.02, 400
    above = []
    for _ in range(lines):
        calibrated, whole = rng.random(9).tolist(), rng.random(90).tolist()
        old = thresholds({CUP: {RGB: calibrated}}, rate)
        new = renewed(old, {CUP: {RGB: [*calibrated, *whole]}}, {})
        above.append(1 - new.classes[CUP].value)
    assert old.classes[CUP].fpr_bound == 0.1
    assert new.classes[CUP].fpr_bound == 0.02
    assert np.mean(above) == pytest.approx(0.02, abs=3 * np.std(above) / lines**0.5)


def test_picking_first_and_calling_the_whole_run_later_keeps_the_rate_while_banks_grow():
    """Scores count as they were before a bank took the image in, and later ones are lower: by a tenth here, by half of
    images that a bank holds, which a plain pool of all scores as they are by then would take in."""
    rng, rate, lines = np.random.default_rng(2), 0.1, 400
    kept, plain = [], []
    for _ in range(lines):
        calibrated, run = rng.random(19), rng.random(60)
        old = thresholds({CUP: {RGB: calibrated.tolist()}}, rate)
        is_picked = run > old.classes[CUP].value
        first = renewed(old, {CUP: {RGB: calibrated.tolist()}}, {CUP: {RGB: run[is_picked].tolist()}})
        recorded = np.where(is_picked, run, 0.9 * run)
        new = renewed(first, {CUP: {RGB: [*calibrated, *recorded]}}, {})
        in_bank = np.where(is_picked, 0.5 * run, 0.9 * run)
        kept.append(max(0, 1 - new.classes[CUP].value / 0.9))
        plain.append(max(0, 1 - conformal_threshold([*(0.5 * calibrated), *in_bank], rate).value / 0.9))
    assert np.mean(kept) <= rate + 3 * np.std(kept) / lines**0.5
    assert np.mean(plain) > 1.5 * rate, "what images that a bank holds would come to"


def test_only_what_is_concerned_changes():
    scores = {CUP: {RGB: [0.1, 0.2, 0.3], BOTH: [1.0]}, SAW: {RGB: [0.5, 0.6]}}
    old = thresholds(scores, 0.3)
    old = old.model_copy(
        update={"classes": {name: found.model_copy(update={"pixel_value": 7.0}) for name, found in old.classes.items()}}
    )
    assert renewed(old, scores, {}) == old
    new = renewed(old, scores, {CUP: {("depth", "rgb"): [3.0], RGB: [0.0]}, "set/unknown": {RGB: [9.0]}})
    assert new.classes[SAW] == old.classes[SAW]
    assert new.classes[CUP].value == old.classes[CUP].value == 0.3
    assert new.of_class(CUP, BOTH).value == 3.0
    assert new.of_class(CUP, BOTH).fpr_bound == old.of_class(CUP, BOTH).fpr_bound
    assert new.classes[CUP].pixel_value == 7.0
    assert new.of_all(BOTH) == old.of_all(BOTH)


def test_a_class_gets_its_first_threshold_from_as_many_images_as_the_rate_needs():
    scores = {CUP: {RGB: [0.1, 0.2, 0.3]}}
    old = thresholds(scores, 0.25)
    assert "set/new" not in renewed(old, {**scores, "set/new": {RGB: [0.4, 0.5]}}, {}).classes
    grown = renewed(old, {**scores, "set/new": {RGB: [0.4, 0.5, 0.6], BOTH: [0.1]}}, {})
    assert (grown.classes["set/new"].value, grown.classes["set/new"].fpr_bound) == (0.6, 0.25)
    assert grown.of_class("set/new", BOTH) is None


def test_a_run_of_one_class_leaves_the_threshold_of_all_classes():
    """Of two classes with scores of other sizes: the rate of all is promised to their mixture as it was calibrated."""
    scores = {CUP: {RGB: [0.1 * number for number in range(1, 21)]}, SAW: {RGB: [1.0 + number for number in range(20)]}}
    old = thresholds(scores, 0.1)
    whole = {**scores, CUP: {RGB: scores[CUP][RGB] * 10}}
    new = renewed(old, whole, {SAW: {RGB: [99.0] * 9}})
    assert (new.classes[CUP].images, new.classes[SAW].value) == (200, 99.0)
    assert (new.all_classes, new.sensor_sets) == (old.all_classes, old.sensor_sets)


def test_thresholds_of_fewer_sensors_are_kept():
    """``unimmad calibrate --missing-sensors`` keeps no scores of them."""
    scores = {CUP: {BOTH: [0.1, 0.2, 0.3, 0.4]}}
    without_depth = thresholds({CUP: {RGB: [0.5, 0.6, 0.7, 0.8]}}, 0.25)
    old = thresholds(scores, 0.25).with_sets_of(without_depth)
    for whole in ({BOTH: [0.1, 0.2, 0.3, 0.4, 0.9]}, {BOTH: scores[CUP][BOTH], RGB: [0.1, 0.1, 0.1]}):
        assert renewed(old, {CUP: whole}, {}).of_class(CUP, RGB) == old.of_class(CUP, RGB)
    enough = renewed(old, {CUP: {**scores[CUP], RGB: [0.1] * 5}}, {})
    assert enough.of_class(CUP, RGB).value == 0.1
    assert enough.of_all(RGB) == old.of_all(RGB)
