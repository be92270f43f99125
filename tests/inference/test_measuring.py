"""What calibration keeps of images, and what prediction measures of them, are the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.monitoring import STATISTICS, load_reference, save_reference
from unimmad.data.decode import decode_image
from unimmad.data.reading.shard_set import ShardSet
from unimmad.evaluation.image_statistics import plain_statistics, shift_of
from unimmad.inference.calibration import calibrate
from unimmad.inference.catalogue import Catalogue
from unimmad.inference.detector import Detector
from unimmad.inference.engines import ModelEngine
from unimmad.inference.inputs import InputSample
from unimmad.inference.measuring import CalibrationFacts, made_reference
from unimmad.monitoring.evidence import on_grid

CPU = torch.device("cpu")
CLASS = "solids/cookie"


@pytest.fixture(scope="module")
def facts_and_thresholds(checkpoint_folder, calibration_shards):
    facts: list[CalibrationFacts] = []
    checkpoint = load_checkpoint(checkpoint_folder)
    thresholds = calibrate(checkpoint, [calibration_shards], 0.5, device=CPU, progress=False, facts=facts)
    return facts, thresholds


def test_a_detector_measures_what_calibration_did_and_tells_its_monitor(
    facts_and_thresholds, checkpoint_folder, calibration_shards, tmp_path
):
    facts, thresholds = facts_and_thresholds
    checkpoint = load_checkpoint(checkpoint_folder)
    twins = [one._replace(key=f"{one.key}-{number}") for one in facts for number in range(12)]
    reference = made_reference(twins, thresholds, checkpoint.weights_digest)
    assert reference.digest == made_reference(twins[::-1], thresholds, checkpoint.weights_digest).digest
    save_reference(reference, tmp_path)
    assert load_reference(tmp_path).digest == reference.digest
    assert {(one.class_name, one.modality) for one in reference.described.images} >= {(CLASS, "rgb"), (CLASS, "depth")}

    shards = ShardSet.open([calibration_shards])
    (ref,) = shards.classes("calibration")[CLASS]
    images = {}
    for name, member in ref.entry.images.items():
        images[name] = decode_image(shards.member_bytes(ref, member), ".png", name)
    engine = ModelEngine(checkpoint.model, checkpoint.recipe.evaluation, CPU)
    catalogue = Catalogue(thresholds.datasets, thresholds.trained_classes)
    detector = Detector(engine, catalogue, thresholds, reference=reference)
    assert detector.predict(images, class_name=CLASS).statistics is None
    monitor = detector.start_monitor()
    samples = [InputSample("a", images), InputSample("b", {"rgb": images["rgb"]})]
    both, alone = detector.predict_all(samples, class_name=CLASS)
    for one in reference.described.images:
        if one.class_name == CLASS:
            found = both.statistics[one.modality]
            assert set(found) == set(STATISTICS)
            kept = {name: values.values for name, values in one.statistics.items()}
            plain = [name for name in STATISTICS if "moved" not in name and name != "features"]
            assert {name: [on_grid(found[name])] for name in plain} == {name: kept[name] for name in plain}
            assert (found["moved_down"], found["moved_right"]) == (0, 0)
            assert found["features"] < 0.1
    assert alone.statistics == {"rgb": both.statistics["rgb"]}
    assert detector.predict(images["rgb"], class_name="materials/other").statistics is None
    assert (monitor.seen, sum(monitor.unknown.values())) == ({CLASS: 2}, 2)


def test_without_a_calibration_there_is_no_monitor(facts_and_thresholds, checkpoint_folder):
    checkpoint, (_, thresholds) = load_checkpoint(checkpoint_folder), facts_and_thresholds
    engine = ModelEngine(checkpoint.model, checkpoint.recipe.evaluation, CPU)
    detector = Detector(engine, Catalogue(thresholds.datasets, thresholds.trained_classes), thresholds)
    with pytest.raises(ValueError, match="calibrate the checkpoint"):
        detector.start_monitor()


def test_each_statistic_is_of_one_thing():
    """Of a smooth pattern with some noise."""
    draw = np.random.default_rng(0)
    place_HW = np.hypot(*np.meshgrid(np.arange(-40, 60), np.arange(-50, 50)))
    image_HW = (0.5 + 0.2 * np.sin(place_HW / 5) + draw.normal(0, 0.02, place_HW.shape)).astype(np.float32)
    usual = plain_statistics(image_HW)
    darker = plain_statistics(0.5 * image_HW)
    assert darker == pytest.approx({**usual, "brightness": usual["brightness"] / 2, "contrast": usual["contrast"] / 2})
    noisy = plain_statistics(image_HW + draw.normal(0, 0.05, image_HW.shape).astype(np.float32))
    assert noisy["noise"] > 2 * usual["noise"]
    blurred_HW = (image_HW[1:] + image_HW[:-1]) / 2
    blurred = plain_statistics((blurred_HW[:, 1:] + blurred_HW[:, :-1]) / 2)
    assert blurred["noise"] < 0.7 * usual["noise"]
    assert blurred["sharpness"] < usual["sharpness"]
    flat = plain_statistics(np.full((9, 9), 0.25, np.float32))
    assert flat == {"brightness": 0.25, "contrast": 0, "sharpness": 0, "noise": 0}
    picture_SS = np.random.default_rng(1).normal(0, 1, (64, 64)).astype(np.float32)
    for _ in range(3):
        picture_SS = (picture_SS + np.roll(picture_SS, 1, 0) + np.roll(picture_SS, 1, 1)) / 3
    moved = shift_of(0.5 * np.roll(picture_SS, (3, -5), (0, 1)), picture_SS)
    assert moved == pytest.approx((3 / 64, -5 / 64), abs=0.5 / 64)
    assert shift_of(np.full((64, 64), 0.3, np.float32), picture_SS) == (0, 0), "nothing is there to be moved"


def test_a_shift_is_seen_where_images_share_an_outline_alone():
    """Discs of different size and inner structure, as slices of a head are."""
    draw = np.random.default_rng(0)
    down_SS, right_SS = np.mgrid[:64, :64] - 32.0

    def disc(right: float) -> np.ndarray:
        inside_SS = np.hypot(down_SS, right_SS - right) < draw.uniform(10, 16)
        structure_SS = ndimage.gaussian_filter(draw.normal(0, 0.25, (64, 64)), 2)
        return np.where(inside_SS, 0.5 + structure_SS, 0).astype(np.float32)

    usual_SS = np.mean([disc(0) for _ in range(8)], axis=0).astype(np.float32)
    normal, moved = ([shift_of(disc(right), usual_SS)[1] for _ in range(20)] for right in (0, 5))
    assert max(normal) < 2 / 64 < min(moved)
    assert np.median(moved) == pytest.approx(5 / 64, abs=0.5 / 64)
