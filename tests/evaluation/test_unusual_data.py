"""Data that lack what some metrics need, that training did not see, or that are stored in another way."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made import hand_made_shards
from PIL import Image

from unimmad.config import load_recipe
from unimmad.data.layouts.find import find_set
from unimmad.data.writing.shards import write_shards
from unimmad.evaluation.evaluate import Evaluation, evaluate_checkpoint
from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.report import from_json
from unimmad.report.tables import screen_table

SIDE = 64
IMAGE_KEYS, PIXEL_KEYS = METRIC_KEYS[:3], METRIC_KEYS[3:]


@pytest.fixture
def evaluated(checkpoint, tmp_path):
    """Evaluate a folder, without pictures."""
    plain = dataclasses.replace(checkpoint, recipe=load_recipe("tiny", ["evaluation.pictures_per_class=0"]))

    def evaluate(folder: Path) -> Evaluation:
        output = tmp_path / f"report-{folder.name}"
        return evaluate_checkpoint(plain, [folder], output, device=torch.device("cpu"), workers=0, progress=False)

    return evaluate


def changed_copy(folder: Path, target: Path, change) -> Path:
    """A shard folder whose test samples are those that ``change`` gives for each; None leaves one out."""
    shutil.copytree(folder, target)
    index = json.loads((target / "index.json").read_text())
    samples = [change(sample) if sample["split"] == "test" else sample for sample in index["samples"]]
    index["samples"] = [sample for sample in samples if sample is not None]
    (target / "index.json").write_text(json.dumps(index))
    return target


def metrics_of(evaluation: Evaluation, class_name: str) -> dict[str, float | None]:
    return next(result.metrics for result in evaluation.report.classes if result.class_name == class_name)


def joined(evaluation: Evaluation) -> str:
    return " ".join(screen_table(evaluation.report).split())


def test_without_masks_the_pixel_metrics_are_undefined_and_it_says_so(evaluated, small_shards, tmp_path):
    found = evaluated(changed_copy(small_shards, tmp_path / "bare", lambda sample: {**sample, "mask": None}))
    metrics = metrics_of(found, "cookie")
    assert {metrics[key] for key in PIXEL_KEYS} == {None}
    assert None not in {metrics[key] for key in IMAGE_KEYS}
    assert (
        "n/a: masks missing, empty, or lost in resizing, so no pixel metric is defined: solids/cookie, solids/rope"
        in joined(found)
    )
    assert json.loads(found.tables[0].read_text())["classes"][0]["metrics"]["AUPRO"] is None


def test_without_anomalies_a_class_has_no_metric_and_the_means_leave_it_out(evaluated, small_shards, tmp_path):
    def normal_ropes(sample):
        return None if sample["class_name"] == "rope" and sample["anomalous"] else sample

    found = evaluated(changed_copy(small_shards, tmp_path / "calm", normal_ropes))
    assert set(metrics_of(found, "rope").values()) == {None}
    assert "n/a: no anomalous image, so no metric is defined: solids/rope" in joined(found)
    assert "* mean of solids covers 1 of 2 classes" in joined(found)


def test_without_normal_images_no_image_metric_lifts_a_mean(evaluated, small_shards, tmp_path):
    def bad_cookies(sample):
        return None if sample["class_name"] == "cookie" and not sample["anomalous"] else sample

    found = evaluated(changed_copy(small_shards, tmp_path / "bad", bad_cookies))
    metrics = metrics_of(found, "cookie")
    assert {metrics[key] for key in IMAGE_KEYS} == {None}
    assert None not in {metrics[key] for key in PIXEL_KEYS}
    assert found.report.mean_of_dataset("solids").metrics["I-AP"] == metrics_of(found, "rope")["I-AP"]
    assert "* mean of datasets covers 1 datasets in part only for I-AUROC, I-AP, I-F1max" in joined(found)
    assert "n/a: no normal image, so no image metric is defined: solids/cookie" in joined(found)


def test_a_trained_class_without_test_images_is_named_and_the_means_are_not_over_all(evaluated, small_shards, tmp_path):
    found = evaluated(changed_copy(small_shards, tmp_path / "few", lambda s: None if s["class_name"] == "rope" else s))
    assert "n/a: no test image: solids/rope" in joined(found)
    assert "* mean of solids covers 1 of 2 classes" in joined(found)
    assert set(metrics_of(found, "rope").values()) == {None}
    assert "solids / rope" in found.page.read_text()


def test_images_of_other_sensors_are_not_ranked_among_each_other(evaluated, small_shards, tmp_path):
    """Of each class one normal and one anomalous image with all sensors, and one anomalous with the first alone."""
    of_class: dict[str, int] = {}

    def one_sensor(sample):
        count = of_class[sample["class_name"]] = of_class.get(sample["class_name"], 0) + sample["anomalous"]
        first = dict(list(sample["images"].items())[:1])
        return {**sample, "images": first} if sample["anomalous"] and count == 2 else sample

    found = evaluated(changed_copy(small_shards, tmp_path / "mixed", one_sensor))
    alone = evaluated(
        changed_copy(tmp_path / "mixed", tmp_path / "alone", lambda s: s if len(s["images"]) > 1 else None)
    )
    for mixed, whole in zip(found.report.classes, alone.report.classes, strict=True):
        assert {key: mixed.metrics[key] for key in IMAGE_KEYS} == {key: whole.metrics[key] for key in IMAGE_KEYS}
        assert sorted((one.normal, one.anomalous) for one in mixed.sensor_sets) == [(0, 1), (1, 1)]
        assert whole.sensor_sets == ()
    assert "solids/cookie: compared within equal sets of sensors" in joined(found)
    assert "rgb + depth (1 normal, 1 anomalous)" in joined(found)
    assert from_json(found.tables[0].read_text()) == found.report
    assert sorted({row.split(",")[-2] for row in found.tables[4].read_text().splitlines() if "cookie" in row}) == [
        "rgb",
        "rgb depth",
    ]


def test_a_label_that_coincides_with_the_set_of_sensors_is_said(evaluated, small_shards, tmp_path):
    def normals_of_rgb_alone(sample):
        if sample["class_name"] != "cookie" or sample["anomalous"]:
            return sample
        return {**sample, "images": {"rgb": sample["images"]["rgb"]}}

    found = evaluated(changed_copy(small_shards, tmp_path / "coincides", normals_of_rgb_alone))
    assert {metrics_of(found, "cookie")[key] for key in IMAGE_KEYS} == {None}
    assert "solids/cookie: the label coincides with the set of sensors" in joined(found)
    assert "rgb (1 normal, 0 anomalous)" in joined(found)
    assert "* mean of solids covers 1 of 2 classes for I-AUROC, I-AP, I-F1max" in joined(found)


def test_classes_that_training_did_not_see_are_evaluated_and_named(evaluated, small_shards, tmp_path):
    materials = hand_made_shards(tmp_path / "materials", ["materials"])
    report = evaluated(materials).report
    assert report.header["not trained on"].startswith("materials/cloth, materials/")
    assert "router" in report.header["not trained on"]
    assert None not in report.classes[0].metrics.values()
    assert "not trained on" not in evaluated(small_shards).report.header


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def gray_set(root: Path, dtype: type, factor: int, side: int = SIDE) -> Path:
    """The same gray images, in 8 or 16 bit."""
    rng = np.random.default_rng(0)
    for number in range(4):
        image = rng.integers(0, 256, (side, side)).astype(dtype) * dtype(factor)
        part = ("train/good", "test/good", "test/bent", "test/bent")[number]
        save(root / "bolt" / part / f"{number:03d}.png", image)
        if part == "test/bent":
            mask = np.zeros((side, side), np.uint8)
            mask[side // 4 : side // 2, side // 3 :] = 255
            save(root / "bolt" / "ground_truth" / "bent" / f"{number:03d}_mask.png", mask)
    write_shards([find_set(root).source], root.parent / f"{root.name}-shards", progress=False)
    return root.parent / f"{root.name}-shards"


def test_bit_depth_changes_no_number(evaluated, tmp_path):
    eight = evaluated(gray_set(tmp_path / "eight", np.uint8, 1))
    sixteen = evaluated(gray_set(tmp_path / "sixteen", np.uint16, 257))
    np.testing.assert_allclose(sixteen.scored[0].image_scores, eight.scored[0].image_scores, rtol=1e-4)
    assert metrics_of(sixteen, "bolt") == pytest.approx(metrics_of(eight, "bolt"), abs=1e-3)


@pytest.mark.parametrize("side", [23, 150])
def test_images_of_another_size_are_resized_with_their_masks(evaluated, tmp_path, side):
    found = evaluated(gray_set(tmp_path / "other", np.uint8, 1, side))
    assert None not in metrics_of(found, "bolt").values()
    assert found.report.header["image size"] == "64 x 64"
