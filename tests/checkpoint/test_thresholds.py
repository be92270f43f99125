from __future__ import annotations

import json

import numpy as np
import pytest

from unimmad.checkpoint.conformal import conformal_threshold, images_needed, thresholds_by_sensors
from unimmad.checkpoint.thresholds import THRESHOLDS_NAME, TIES, is_above, load_thresholds, save_thresholds
from unimmad.data.index import DatasetEntry, Modality
from unimmad.metrics.at_threshold import Spread

SOLIDS = DatasetEntry(field="industry", modalities=(Modality(name="rgb", slot=0, kind="rgb"),))


def made(rate: float = 0.1):
    scores = {"solids/cookie": [0.1 * n for n in range(1, 20)], "solids/rope": [5.0, 4.0, 6.0]}
    by_sensors = {name: {("rgb",): of_class} for name, of_class in scores.items()}
    return thresholds_by_sensors(by_sensors, {"solids": SOLIDS}, (*scores, "solids/nut"), rate)


@pytest.mark.parametrize(
    ("count", "rate", "rank"),
    [(99, 0.01, 99), (100, 0.01, 100), (199, 0.01, 198), (19, 0.05, 19), (199, 0.05, 190), (9, 0.5, 5), (3, 0.3, 3)],
)
def test_the_threshold_is_the_score_of_the_conformal_rank(count, rate, rank):
    scores = np.random.default_rng(count).permutation(count) + 1.0
    found = conformal_threshold(list(scores), rate)
    assert found.value == rank
    assert found.fpr_bound == pytest.approx(1 - rank / (count + 1))
    assert found.fpr_bound <= rate


@pytest.mark.parametrize(("count", "rate"), [(1, 0.01), (98, 0.01), (18, 0.05)])
def test_too_few_scores_give_the_largest_and_the_rate_that_they_can_promise(count, rate):
    found = conformal_threshold([float(n) for n in range(count)], rate)
    assert found.value == count - 1
    assert found.fpr_bound == pytest.approx(1 / (count + 1))
    assert found.fpr_bound > rate


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.05, 19), (0.3, 3), (0.001, 999)])
def test_the_number_of_images_needed_is_the_smallest_that_promises_the_rate(rate, needed):
    assert images_needed(rate) == needed
    assert conformal_threshold([1.0] * needed, rate).fpr_bound <= rate
    assert needed == 1 or conformal_threshold([1.0] * (needed - 1), rate).fpr_bound > rate


def test_false_alarms_on_new_normal_scores_are_as_many_as_promised_on_average():
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(400):
        threshold = conformal_threshold(list(rng.exponential(size=39)), 0.1)
        rates.append((rng.exponential(size=500) > threshold.value).mean())
    assert np.mean(rates) == pytest.approx(0.1, abs=0.012)


@pytest.mark.parametrize("scores", [[], [1.0, float("nan")], [float("inf")]])
def test_no_score_or_one_that_is_not_finite_is_refused(scores):
    with pytest.raises(ValueError, match="finite scores"):
        conformal_threshold(scores, 0.1)


@pytest.mark.parametrize("rate", [0, 1, -0.1, 5])
def test_a_rate_that_cannot_be_is_refused(rate):
    with pytest.raises(ValueError, match=r"false-alarm rate .* between 0 and 1"):
        conformal_threshold([1.0], rate)


def test_each_set_of_modalities_has_its_threshold_for_a_class_and_for_all():
    both, rgb = ("rgb", "depth"), ("rgb",)
    scores = {"a/x": {rgb: [0.1, 0.2, 0.3], both: [1.0, 2.0]}, "a/y": {both[::-1]: [3.0]}}
    usual = {"a/x": {rgb: [0.01, 0.03, 0.02], both: [0.1, 0.2]}, "a/y": {both[::-1]: [0.3]}}
    found = thresholds_by_sensors(scores, {"a": SOLIDS}, tuple(scores), 0.4, usual=usual)
    assert found.of_class("a/x", rgb) == found.classes["a/x"]
    assert (found.of_class("a/x", rgb).value, found.of_class("a/x", rgb).usual) == (0.3, 0.02)
    assert (found.of_class("a/x", both[::-1]).value, found.of_class("a/x", both).images) == (2.0, 2)
    assert found.of_class("a/x", ("depth",)) is None
    assert found.of_class("a/y", rgb) is None
    assert (found.of_all(both).value, found.of_all(both).images) == (3.0, 3)
    assert (found.of_all(both).usual, found.of_all(rgb).value) == (0.2, 0.3)
    assert found.of_all(("depth",)) is None
    older = found.model_copy(update={"sensor_sets": ()})
    assert older.of_all(("depth",)) == found.all_classes

    maps = {"a/x": {rgb: [1.0, 3.0], both: [10.0, 30.0]}, "a/y": {both[::-1]: [80.0]}}
    spreads = {name: {of: Spread.of(values) for of, values in sets.items()} for name, sets in maps.items()}
    pixels = found.with_pixel_values(spreads)
    assert (pixels.of_class("a/x", rgb).pixel_value, pixels.of_class("a/x", both).pixel_value) == (5.0, 50.0)
    assert (pixels.of_class("a/y", both).pixel_value, pixels.of_all(rgb).pixel_value) == (80.0, 5.0)
    assert pixels.of_all(both).pixel_value == pytest.approx(40 + 3 * np.std([10, 30, 80]))
    assert pixels.all_classes.pixel_value == pytest.approx(24.8 + 3 * np.std([1, 3, 10, 30, 80]))
    assert found.with_pixel_values({}).of_all(both).pixel_value is None


def test_of_sets_that_both_have_a_class_takes_that_of_more_images_and_all_the_larger():
    """Scored again without a sensor, some classes have a set that others' images are of as they are."""
    both, rgb = ("rgb", "depth"), ("rgb",)
    as_they_are = {"a/x": {both: [1.0] * 4, rgb: [0.2]}, "a/y": {rgb: [0.4] * 5}, "a/z": {both: [1.0] * 9}}
    without = {"a/x": {rgb: [0.2, 0.3, 0.3, 0.3, 0.3]}, "a/y": {rgb: [0.9]}, "a/z": {rgb: [2.0] * 9}}
    first, again = (thresholds_by_sensors(scores, {}, tuple(scores), 0.4) for scores in (as_they_are, without))
    found = first.with_sets_of(again)
    assert [found.of_class(name, rgb).value for name in ("a/x", "a/y", "a/z")] == [0.3, 0.4, 2.0]
    assert (found.of_class("a/x", both).value, found.of_all(both)) == (1.0, first.of_all(both))
    assert found.of_all(rgb).value == 2.0, "not a/y's alone"
    assert found.with_sets_of(again) == found
    assert again.with_sets_of(first).of_all(rgb).value == 2.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_another_batch_size_may_change_decides_nothing(precision):
    for threshold in (0.5, -0.5, 0.0):
        just_above = threshold + 0.5 * TIES[precision] * abs(threshold)
        assert not is_above(just_above, threshold, precision)
        assert is_above(threshold + 2 * TIES[precision] + 1e-9, threshold, precision)


def test_each_class_has_its_threshold_and_all_share_one():
    thresholds = made()
    assert thresholds.classes["solids/cookie"].value == pytest.approx(1.8)
    assert thresholds.classes["solids/rope"].value == 6.0
    assert thresholds.classes["solids/rope"].modalities == ("rgb",)
    assert thresholds.all_classes.value == 5.0
    assert thresholds.all_classes.images == 22
    assert thresholds.too_few() == ["solids/rope"]


def test_what_is_saved_is_loaded(tmp_path):
    path = save_thresholds(made(), tmp_path)
    assert [found.name for found in tmp_path.iterdir()] == [path.name] == [THRESHOLDS_NAME]
    assert load_thresholds(tmp_path) == made()
    assert json.loads(path.read_text())["all_classes"].keys() == {
        "value",
        "images",
        "promised_rate",
        "pixel_value",
    }


def test_a_digit_that_changed_is_noticed_in_one_line_that_says_what_to_do(tmp_path):
    path = save_thresholds(made(), tmp_path)
    path.write_text(path.read_text().replace('"value": 6.0', '"value": 7.0'))
    with pytest.raises(
        ValueError, match=r"thresholds\.json: it is not what calibration wrote.*calibrate again"
    ) as refused:
        load_thresholds(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_change_on_purpose_is_taken_once_the_digest_is_gone(tmp_path):
    path = save_thresholds(made(), tmp_path)
    content = json.loads(path.read_text())
    del content["sha256"]
    content["classes"]["solids/rope"]["value"] = 7.0
    path.write_text(json.dumps(content))
    loaded = load_thresholds(tmp_path)
    assert loaded is not None
    assert loaded.classes["solids/rope"].value == 7.0


def test_the_precision_that_they_were_made_in_is_kept_and_a_decision_in_another_says_so(tmp_path):
    save_thresholds(made().model_copy(update={"precision": "bf16"}), tmp_path)
    loaded = load_thresholds(tmp_path)
    assert loaded is not None
    assert loaded.precision == "bf16"
    assert loaded.precision_note("bf16") == ""
    assert loaded.precision_note("fp32") == "scored in fp32, by thresholds of scores in bf16"


def test_a_file_from_before_precisions_were_written_down_still_loads_and_says_nothing(tmp_path):
    content = json.loads(made().model_dump_json())
    del content["precision"]
    (tmp_path / THRESHOLDS_NAME).write_text(json.dumps(content))
    loaded = load_thresholds(tmp_path)
    assert loaded is not None
    assert loaded.precision is None
    assert loaded.precision_note("fp32") == loaded.precision_note("bf16") == ""


def test_a_checkpoint_without_thresholds_has_none(tmp_path):
    assert load_thresholds(tmp_path) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2}', ""])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / THRESHOLDS_NAME).write_text(text)
    with pytest.raises(ValueError, match=rf"{THRESHOLDS_NAME}: .*calibrate again"):
        load_thresholds(tmp_path)


def test_a_value_that_is_no_number_is_named(tmp_path):
    content = json.loads(made().model_dump_json())
    content["classes"]["solids/rope"]["value"] = "high"
    (tmp_path / THRESHOLDS_NAME).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"classes.solids/rope.value"):
        load_thresholds(tmp_path)


def test_those_of_one_data_set_know_nothing_of_others():
    assert made().only("solids") == made()
    assert made().only("brains") is None
    both, rgb = ("rgb", "depth"), ("rgb",)
    scores = {
        "a/x": {rgb: [0.1, 0.2, 0.3], both: [1.0, 2.0]},
        "a/y": {both[::-1]: [3.0]},
        "b/z": {rgb: [9.0], both: [9.0]},
    }
    usual = {
        name: {of: [0.5 * score for score in found] for of, found in sets.items()} for name, sets in scores.items()
    }
    found = thresholds_by_sensors(scores, {"a": SOLIDS, "b": SOLIDS}, tuple(scores), 0.4, usual=usual)
    kept = found.only("a")
    assert kept.classes == {name: found.classes[name] for name in ("a/x", "a/y")}
    assert (list(kept.datasets), kept.trained_classes) == (["a"], ("a/x", "a/y"))
    assert (kept.of_all(rgb).value, kept.of_all(rgb).images, kept.of_all(rgb).usual) == (0.3, 3, pytest.approx(0.1))
    assert (kept.of_all(both).value, kept.of_all(both).images) == (3.0, 3)
    assert kept.of_all(both).fpr_bound == found.classes["a/y"].fpr_bound == 0.5
    assert (kept.all_classes.value, kept.all_classes.images) == (3.0, 6)
    assert found.model_copy(update={"sensor_sets": ()}).only("a").of_all(("depth",)) == kept.all_classes
    spreads = {"a/x": {rgb: Spread.of([5.0])}, "b/z": {rgb: Spread.of([7.0])}}
    measured = found.with_pixel_values(spreads).only("a")
    assert (measured.of_all(rgb).pixel_value, measured.of_all(both).pixel_value) == (5.0, None)
