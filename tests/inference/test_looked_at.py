"""A region of interest means the same to calibration, evaluation and prediction, and travels with the thresholds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made import maps_of
from PIL import Image

from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.thresholds import load_thresholds, save_thresholds
from unimmad.data.index import rois_of
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.roi import given_rois
from unimmad.data.sample import collate
from unimmad.evaluation.header import rois_in_words
from unimmad.evaluation.held_thresholds import HeldThresholds
from unimmad.evaluation.normal_maps import measure_normals
from unimmad.evaluation.run import evaluate_classes
from unimmad.evaluation.scoring import maps_and_scores
from unimmad.inference.calibration import calibrate
from unimmad.inference.detector import Detector
from unimmad.inference.inputs import InputSample
from unimmad.inference.output import PredictionFolder
from unimmad.inference.resume import prediction_fingerprint
from unimmad.model.anomaly_map import image_scores

CPU = torch.device("cpu")
COOKIE = "solids/cookie"
LEFT = {"size": [100, 100], "areas": [{"polygon": [[0, 0], [49, 0], [49, 99], [0, 99]]}], "foreground": True}


@pytest.fixture(scope="module")
def regions(tmp_path_factory) -> Path:
    """Of cookie alone: its left half, of that the object."""
    folder = tmp_path_factory.mktemp("regions")
    (folder / "cookie.json").write_text(json.dumps(LEFT))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, checkpoint_folder, calibration_shards, regions) -> Path:
    """A checkpoint calibrated with the regions, so that every normal cookie lies below its threshold."""
    copy = Path(shutil.copytree(checkpoint_folder.parent.parent, tmp_path_factory.mktemp("roi") / "run"))
    checkpoint = load_checkpoint(copy / "checkpoints" / checkpoint_folder.name)
    made = calibrate(checkpoint, [calibration_shards], 0.5, device=CPU, progress=False, roi=regions)
    save_thresholds(made, checkpoint.folder)
    return copy


def cookies(shards: ShardSet, folder: Path) -> list[InputSample]:
    samples = []
    for ref in shards.classes("test")[COOKIE]:
        images = {}
        for name, member in ref.entry.images.items():
            images[name] = folder / f"{ref.entry.key}-{name}{Path(member.name).suffix}"
            images[name].write_bytes(shards.member_bytes(ref, member))
        samples.append(InputSample(ref.entry.key, images))
    return samples


def test_evaluation_and_prediction_look_where_calibration_did(run, calibration_shards, regions, tmp_path):
    checkpoint = load_checkpoint(next((run / "checkpoints").glob("step_*")))
    settings, plain = checkpoint.recipe.evaluation, ShardSet.open([calibration_shards])
    shards = plain.with_rois(given_rois(regions, plain.classes("test")))
    assert shards.digest() != plain.digest()
    held = HeldThresholds(load_thresholds(checkpoint.folder), shards.datasets, False, "fp32")
    scored_classes = evaluate_classes(
        checkpoint.model, shards, "test", settings, device=CPU, workers=0, progress=False, thresholds=held
    )
    scored = {one.class_name: one for one in scored_classes}
    header = rois_in_words(shards, scored, scored.values())
    assert header.startswith(f"{COOKIE}: polygons, 50% looked at, foreground, ")

    # Scores are those of the pixels in the region, by their definition.
    expected = {}
    for ref in shards.classes("test")[COOKIE]:
        sample = shards.read(ref, 64)
        look_HW = sample.weights_HW.numpy() > 0
        assert not look_HW[:, 32:].any()
        assert 0.02 < look_HW.mean() < 0.45
        whole_BHW, _ = maps_of(checkpoint.model, collate([plain.read(ref, 64)]), settings)
        expected[ref.entry.key] = float(np.sort(whole_BHW[0].numpy()[look_HW])[-max(1, look_HW.sum() // 1000) :].mean())
    by_key = dict(zip(scored[COOKIE].keys, scored[COOKIE].image_scores, strict=True))
    assert by_key == pytest.approx({key: expected[key] for key in by_key}, rel=1e-5)
    assert len(by_key) + scored[COOKIE].outside == 3

    detector = Detector.open(run, device="cpu")
    samples = cookies(plain, tmp_path)
    fingerprint = prediction_fingerprint(detector, {})
    predicted = list(detector.predict_all(samples, class_name="cookie", with_pictures=True))
    digest = rois_of(detector.thresholds.datasets).of(COOKIE).digest
    for found in predicted:
        assert found.score == pytest.approx(expected[found.name], rel=1e-5)
        assert (found.roi, found.threshold_of) == (digest, COOKIE)
        assert (found.map_HW[found.weights_HW == 0] == 0).all()
    assert scored[COOKIE].result.at_threshold.undecided == 0

    with PredictionFolder(tmp_path / "out", {found.name: "x" for found in predicted}) as folder:
        for found in predicted:
            folder.add(found)
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert {line["roi"] for line in lines} == {digest}
    with Image.open(tmp_path / "out" / lines[0]["picture"]) as opened:
        width = opened.size[0]
        map_panel = np.asarray(opened)[:, width // 2 + width // 8 - 20 : width // 2 + width // 8 + 80]
    assert (np.ptp(map_panel.astype(int), axis=2) == 0).mean() > 0.4  # gray: not looked at

    # Another region, or none for want of a class: scored, and not decided.
    other = Detector.open(run, device="cpu", roi=Path("none"))
    assert prediction_fingerprint(other, {}) != fingerprint
    undecided = next(other.predict_all(samples[:1], class_name="cookie"))
    assert (undecided.threshold, undecided.roi, undecided.weights_HW) == (None, None, None)
    assert undecided.notes[-1] == "no threshold holds for another region of interest: calibrate with it"
    assert "name it" in next(detector.predict_all(samples[:1])).notes[-1]
    everywhere = Detector.open(run, device="cpu", roi=regions / "cookie.json")
    assert next(everywhere.predict_all(samples[:1])).score == pytest.approx(predicted[0].score, rel=1e-6)


def test_normal_maps_are_measured_where_to_look(run, calibration_shards, regions):
    """By calibration, and by what training keeps for the colours: the values inside alone."""
    checkpoint = load_checkpoint(next((run / "checkpoints").glob("step_*")))
    plain = ShardSet.open([calibration_shards])
    shards = plain.with_rois(given_rois(regions, plain.classes("calibration")))
    (ref,) = shards.classes("calibration")[COOKIE]
    sample = shards.read(ref, 64)
    maps_BHW, scores_B = maps_of(checkpoint.model, collate([sample]), checkpoint.recipe.evaluation)
    inside = maps_BHW[0][sample.weights_HW > 0]
    found = load_thresholds(checkpoint.folder).classes[COOKIE]
    assert found.usual == pytest.approx(inside.median().item(), rel=1e-4)
    assert found.usual > 0
    assert found.pixel_value == pytest.approx(inside.mean().item() + 3 * inside.std(correction=0).item(), rel=1e-4)
    measured = measure_normals(checkpoint, shards, CPU)
    (own,) = (one for one in measured.sets if one.class_name == COOKIE)
    assert (own.usual, own.highest) == pytest.approx((found.usual, scores_B.item()), rel=1e-4)


@pytest.mark.parametrize("pool", [1, 3])
def test_maps_and_scores_by_their_definition(pool):
    generator = torch.Generator().manual_seed(0)
    maps_BHW = torch.randn(3, 12, 15, generator=generator)
    weights_HW = torch.zeros(12, 15)
    weights_HW[2:7, 1:9] = torch.rand(5, 8, generator=generator)
    weights_HW[9, 14] = 1

    class Settings:
        top_share, score_pool = 0.2, pool

    found_BHW, scores_B = maps_and_scores(maps_BHW, Settings, [None, weights_HW, None])
    assert torch.equal(found_BHW[[0, 2]], maps_BHW[[0, 2]])
    assert torch.equal(scores_B[[0, 2]], image_scores(maps_BHW, 0.2, pool)[[0, 2]])
    map_HW, look_HW = maps_BHW[1].numpy(), weights_HW.numpy() > 0
    expected_HW = np.where(map_HW > 0, map_HW * weights_HW.numpy(), map_HW) * look_HW
    np.testing.assert_allclose(found_BHW[1], expected_HW, rtol=1e-6)
    means = []
    for row in range(12 - pool + 1):
        for column in range(15 - pool + 1):
            window = np.s_[row : row + pool, column : column + pool]
            if look_HW[window].any():
                means.append(expected_HW[window][look_HW[window]].mean())
    best = sorted(means)[-max(1, int(len(means) * 0.2)) :]
    assert scores_B[1].item() == pytest.approx(np.mean(best), rel=1e-5)
