"""What a report says of a checkpoint that has thresholds."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from hand_made import hand_made_shards, maps_of

from unimmad.checkpoint.conformal import thresholds_by_sensors
from unimmad.checkpoint.thresholds import TIES, save_thresholds
from unimmad.data.index import with_rois
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.roi import Roi, Rois
from unimmad.data.sample import collate
from unimmad.evaluation.collecting import ClassScores, ScoredBatch
from unimmad.evaluation.evaluate import evaluate_checkpoint
from unimmad.evaluation.held_thresholds import HeldThresholds
from unimmad.metrics.at_threshold import SIZE_NAMES, AtThreshold, Spread, count_image, joined
from unimmad.report.at_threshold import at_threshold_table
from unimmad.report.class_pictures import draw_class
from unimmad.report.report import ClassResult, Report, from_json
from unimmad.report.scored_class import read_scored, scored_entry
from unimmad.report.tables import screen_table

CPU = torch.device("cpu")
COOKIE, ROPE = "solids/cookie", "solids/rope"


@pytest.fixture(scope="module")
def solids(tmp_path_factory):
    return hand_made_shards(tmp_path_factory.mktemp("shards") / "solids", ["solids"])


@pytest.fixture(scope="module")
def maps(checkpoint, solids):
    """Sample, map and score of every test sample."""
    shards = ShardSet.open([solids])
    found = []
    for refs in shards.classes("test").values():
        for ref in refs:
            sample = shards.read(ref, 64, checkpoint.recipe.evaluation.mask_resize)
            maps_BHW, scores_B = maps_of(checkpoint.model, collate([sample]), checkpoint.recipe.evaluation)
            found.append((sample, maps_BHW[0].numpy(), scores_B.item()))
    return found


def test_what_is_marked_outside_of_the_region_alone_is_left_out(maps):
    """As if there were no such image; a normal one, and one that is marked inside as well, count."""
    scores = ClassScores(COOKIE, "industry", 0, None)
    chosen = [(sample, map_HW) for sample, map_HW, _ in maps if sample.class_name == COOKIE]
    kept = 0
    for place, (sample, map_HW) in enumerate(chosen):
        weights_HW = torch.ones(64, 64)
        if sample.anomalous and place == len(chosen) - 1:
            weights_HW[sample.mask_HW] = 0
        elif sample.anomalous:
            weights_HW[0] = 0
        kept += bool(weights_HW[1:].all())
        batch = collate([dataclasses.replace(sample, weights_HW=weights_HW)])
        scores.add(ScoredBatch(batch.samples, map_HW[None], (float(place),), None))
    scored = scores.scored()
    assert (scored.outside, len(scored.keys), kept) == (1, 2, 2)
    assert scored.result.normal + scored.result.anomalous == 2
    assert read_scored(json.loads(json.dumps(scored_entry(scored)))).outside == 1


def test_each_set_of_modalities_is_counted_at_its_own_thresholds_inside_of_the_region(solids, maps):
    """Of one image with all modalities, with one and with the other, on the half of a map that is looked at."""
    both, rgb, depth = ("rgb", "depth"), ("rgb",), ("depth",)
    datasets = with_rois(ShardSet.open([solids]).datasets, Rois({COOKIE: Roi(foreground=True)}), [COOKIE, ROPE])
    made = thresholds_by_sensors({COOKIE: {both: [2.0], rgb: [0.5]}}, datasets, (COOKIE, ROPE), 0.25)
    made = made.with_pixel_values({COOKIE: {both: Spread(1, 5.0, 0.0), rgb: Spread(1, 1.0, 0.0)}})
    held = HeldThresholds(made, datasets, False, "fp32")
    weights_HW = torch.ones(64, 64)
    weights_HW[:, 32:] = 0
    cookie = dataclasses.replace(maps[0][0], class_name=COOKIE, anomalous=False, weights_HW=weights_HW)
    cookie = dataclasses.replace(cookie, mask_HW=torch.zeros(64, 64, dtype=torch.bool))
    samples = {of: dataclasses.replace(cookie, modalities=of) for of in (both, rgb, depth)}
    assert f"too few calibration images to promise it, only up to 0.5: {COOKIE}; " in held.in_words()
    assert held.in_words().endswith(f"by the threshold of all classes, which promises them none: {ROPE}")
    assert "all classes" not in dataclasses.replace(held, added={ROPE: None}).in_words(), "its own is borrowed"
    tie = 1 + TIES["fp32"]
    assert {of: held.limits(sample) for of, sample in samples.items()} == {
        both: (2 * tie, 5.0),
        rgb: (0.5 * tie, 1.0),
        depth: (None, None),
    }
    map_HW = np.full((64, 64), 3, np.float32)
    map_HW[:, 31] = 0
    scores = ClassScores(COOKIE, "industry", 0, None, held)
    for of, score in ((both, 1.9), (rgb, 0.5 * tie), (rgb, 0.6), (depth, 9.0)):
        scores.add(ScoredBatch((samples[of],), map_HW[None], (score,), None))
    result = scores.scored().result
    found = result.at_threshold
    assert (found.normal, found.normal_above, found.undecided, found.segmented) == (3, 1, 1, 3)
    assert (found.pixels_false, found.false_regions) == (2 * 64 * 31, 2)
    assert {one.modalities: one.normal for one in result.sensor_sets} == {both: 1, rgb: 2, depth: 1}

    # Another class is decided by all classes' thresholds for its modalities, where it has the region that they are of.
    rope = dataclasses.replace(samples[rgb], class_name=ROPE)
    assert held.limits(rope) == (None, None)
    alike = with_rois(datasets, Rois(dict.fromkeys((COOKIE, ROPE), Roi(foreground=True))), [COOKIE, ROPE])
    assert HeldThresholds(made, alike, False, "fp32").limits(rope) == (0.5 * tie, 1.0)
    elsewhere = ShardSet.open([solids]).datasets
    assert HeldThresholds(made, elsewhere, False, "fp32").limits(samples[rgb]) == (None, None)
    older = HeldThresholds(made.model_copy(update={"sensor_sets": ()}), alike, False, "fp32")
    assert older.of(rope) is None
    assert older.of(dataclasses.replace(rope, modalities=both)) == made.all_classes


def test_a_class_of_which_nothing_is_left_and_one_without_images_are_told_apart(maps):
    sample, map_HW, _ = next(item for item in maps if item[0].anomalous)
    weights_HW = torch.ones(64, 64)
    weights_HW[sample.mask_HW] = 0
    scores = ClassScores(COOKIE, "industry", 0, None)
    batch = collate([dataclasses.replace(sample, weights_HW=weights_HW)])
    scores.add(ScoredBatch(batch.samples, map_HW[None], (1.0,), None))
    scored = scores.scored()
    assert (scored.outside, scored.curves, set(scored.result.metrics.values())) == (1, None, {None})
    assert draw_class(scored, []).curves

    counted = dataclasses.replace(scored.result, normal=1, at_threshold=AtThreshold(undecided=1))
    untested = ClassResult("solids", "industry", "rope", 0, 0, scored.result.metrics)
    table = at_threshold_table(Report({}, (counted, untested), ()))
    assert "some or all images of solids/cookie," in table.notes[0]


def test_a_report_counts_at_the_checkpoints_thresholds(checkpoint, solids, maps, tmp_path):
    """Of cookie; rope was calibrated with depth alone, so none holds for it."""
    scores = sorted(score for sample, _, score in maps if sample.class_name == COOKIE)
    middle = (scores[len(scores) // 2 - 1] + scores[len(scores) // 2]) / 2  # rounding takes no score across it
    made = thresholds_by_sensors(
        {COOKIE: {("depth", "rgb"): [middle]}, ROPE: {("depth",): [1.0]}},
        ShardSet.open([solids]).datasets,
        (COOKIE, ROPE),
        0.25,
        "bf16",
    )
    pixel = float(np.median([map_HW for sample, map_HW, _ in maps if sample.class_name == COOKIE]))
    (tmp_path / "step").mkdir()
    save_thresholds(made.with_pixel_values({COOKIE: {("depth", "rgb"): Spread(1, pixel, 0.0)}}), tmp_path / "step")
    settings = checkpoint.recipe.evaluation.model_copy(update={"pictures_per_class": 0})
    checkpoint = dataclasses.replace(checkpoint, recipe=checkpoint.recipe.model_copy(update={"evaluation": settings}))
    calibrated = dataclasses.replace(checkpoint, folder=tmp_path / "step")
    run = {"output": tmp_path / "out", "device": CPU, "workers": 0, "progress": False}
    evaluation = evaluate_checkpoint(calibrated, [solids], **run)

    cookie, rope = evaluation.report.classes
    expected = joined(
        count_image(map_HW, sample.mask_HW, score, int(sample.anomalous), middle, pixel)
        for sample, map_HW, score in maps
        if sample.class_name == COOKIE
    )
    found = cookie.at_threshold
    for counts in ("normal", "normal_above", "anomalous", "anomalous_above", "defects", "undecided"):
        assert getattr(found, counts) == getattr(expected, counts)
    assert found.seg_f1 == pytest.approx(expected.seg_f1, abs=1e-3)
    assert found.normal_above + found.anomalous_above == len(scores) - len(scores) // 2
    assert rope.at_threshold.undecided == rope.normal + rope.anomalous
    assert "false-alarm rate of 0.25" in evaluation.report.header["thresholds"]
    assert "scored in fp32, by thresholds of scores in bf16" in evaluation.report.header["thresholds"]

    text = (tmp_path / "out" / "report.json").read_text()
    assert from_json(text) == evaluation.report
    assert json.loads(text)["classes"][0]["at_threshold"]["defect_sizes"] == list(SIZE_NAMES)
    with (tmp_path / "out" / "at_threshold.csv").open() as file:
        assert float(next(csv.DictReader(file))["SegF1"]) == found.seg_f1
    shown = screen_table(evaluation.report)
    print(shown)
    assert max(len(line) for line in shown.splitlines()[20:]) <= 80
    for shows in (shown, (tmp_path / "out" / "report.md").read_text(), evaluation.page.read_text()):
        assert f"{found.seg_f1:.3f}" in shows
        assert f"{sum(found.defects_found[2:3])}/{sum(found.defects[2:3])}" in shows or not found.defects[2]
        assert "no threshold holds for some or all images of solids/rope" in shows

    (tmp_path / "cookie.json").write_text('{"size": [9, 9], "areas": [{"polygon": [[0, 0], [8, 0], [8, 4], [0, 4]]}]}')
    without = evaluate_checkpoint(checkpoint, [solids], **run, roi=tmp_path)
    assert [result.at_threshold for result in without.report.classes] == [None, None]
    assert not (tmp_path / "out" / "at_threshold.csv").exists()
    assert without.report.classes[1].metrics == rope.metrics
    assert without.report.header["regions of interest"].startswith("solids/cookie: polygons, 56% looked at, ")
