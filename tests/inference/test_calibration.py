from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from hand_made import maps_of

from unimmad.checkpoint.loading import LoadedCheckpoint, load_checkpoint
from unimmad.checkpoint.thresholds import Thresholds
from unimmad.checkpoint.trained_on import TrainedOn
from unimmad.cli.shards import shards_parser
from unimmad.data.decode import decode_image
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.sample import collate
from unimmad.data.synthetic.default_set import SYNTHETIC_FOLDER
from unimmad.inference import calibration
from unimmad.inference.calibration import KeptSensors, _check_unseen, calibrate, describe
from unimmad.inference.catalogue import Catalogue
from unimmad.inference.detector import Detector
from unimmad.inference.engines import ModelEngine
from unimmad.inference.inputs import InputSample
from unimmad.inference.measuring import CalibrationFacts
from unimmad.inference.missing_sensors import kept_sensors, with_missing_sensors

CPU = torch.device("cpu")
CLASSES = ["materials/cloth", "materials/nut", "materials/tiles", "solids/cookie", "solids/rope"]


@pytest.fixture(scope="module")
def checkpoint(checkpoint_folder) -> LoadedCheckpoint:
    return load_checkpoint(checkpoint_folder)


@pytest.fixture(scope="module")
def thresholds(checkpoint, calibration_shards) -> Thresholds:
    return calibrate(checkpoint, [calibration_shards], 0.01, device=CPU, progress=False)


def changed(shards: Path, target: Path, values: dict[str, object]) -> Path:
    """A copy of the shards in which the samples of the calibration split have other values."""
    copy = shutil.copytree(shards, target)
    index = json.loads((copy / "index.json").read_text())
    for sample in index["samples"]:
        if sample["split"] == "calibration":
            sample.update(values)
    (copy / "index.json").write_text(json.dumps(index))
    return copy


def test_each_class_has_the_score_of_its_calibration_image(checkpoint, calibration_shards, thresholds):
    shards = ShardSet.open([calibration_shards])
    assert sorted(thresholds.classes) == CLASSES
    for name, (ref,) in shards.classes("calibration").items():
        _, scores_B = maps_of(checkpoint.model, collate([shards.read(ref, 64)]), checkpoint.recipe.evaluation)
        assert thresholds.classes[name].value == pytest.approx(scores_B.item(), rel=1e-5)
        assert thresholds.classes[name].images == 1
        assert set(thresholds.classes[name].modalities) == set(ref.entry.images)
    assert thresholds.all_classes.value == max(found.value for found in thresholds.classes.values())
    assert thresholds.all_classes.images == 5


def test_without_a_sensor_the_same_images_are_scored_again_and_decide(
    checkpoint_folder, calibration_shards, thresholds
):
    shards, cookie = ShardSet.open([calibration_shards]), "solids/cookie"
    wanted = [one for one in kept_sensors(shards) if cookie in one.classes]
    assert {one.modalities for one in wanted} == {("rgb",), ("depth",)}

    def calibrated(kept: KeptSensors) -> Thresholds:
        again = load_checkpoint(checkpoint_folder)
        return calibrate(again, [calibration_shards], 0.01, device=CPU, progress=False, kept=kept)

    rgb = KeptSensors(("rgb",), (cookie,))
    found = thresholds.with_sets_of(calibrated(rgb))
    assert found.classes[cookie].model_copy(update={"sets": ()}) == thresholds.classes[cookie]
    assert found.with_sets_of(calibrated(rgb)) == found
    alone = load_checkpoint(checkpoint_folder)
    engine = ModelEngine(alone.model, alone.recipe.evaluation, CPU)
    (ref,) = shards.classes("calibration")[cookie]
    image = decode_image(shards.member_bytes(ref, ref.entry.images["rgb"]), ".png", "rgb")
    catalogue = Catalogue(found.datasets, found.trained_classes)
    undecided, decided = (
        Detector(engine, catalogue, held).predict({"rgb": image}, class_name=cookie) for held in (thresholds, found)
    )
    assert undecided.threshold is None
    assert decided.threshold == pytest.approx(decided.score, rel=1e-5), "its own image, scored without depth"
    assert decided.anomalous is False
    assert decided.threshold_of == cookie
    whole = with_missing_sensors(thresholds, shards, calibrated)
    for one in wanted:
        assert whole.of_class(cookie, one.modalities) is not None
        assert whole.of_all(one.modalities).value >= whole.of_class(cookie, one.modalities).value
    assert whole.of_class(cookie, ("rgb",)) == found.of_class(cookie, ("rgb",))
    assert {one.modalities for one in whole.classes[cookie].sets} == {("rgb",), ("depth",)}


def test_an_image_that_cannot_be_read_for_its_digest_is_left_out_too(checkpoint, calibration_shards, monkeypatch):
    """Images are read for their scores, and again for what a later command knows them by."""

    def digest(sample: InputSample) -> str:
        if "rope" in sample.name:
            raise ValueError(f"{sample.name}: gone")
        return sample.name

    monkeypatch.setattr(calibration, "pixels_digest", digest)
    run = {"device": CPU, "progress": False}
    assert len(calibrate(checkpoint, [calibration_shards], 0.5, **run).classes) == 5, "nobody asks for digests"
    with pytest.raises(ValueError, match=r"solids/rope .*: gone"):
        calibrate(checkpoint, [calibration_shards], 0.5, **run, facts=[])
    facts: list[CalibrationFacts] = []
    found = calibrate(checkpoint, [calibration_shards], 0.5, **run, facts=facts, on_error="skip", workers=0)
    assert sorted(found.classes) == sorted(one.class_name for one in facts) == CLASSES[:-1]
    assert all(one.digest.startswith(f"{one.class_name} ") for one in facts)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_precision_is_kept_with_them(checkpoint, calibration_shards, precision):
    found = calibrate(checkpoint, [calibration_shards], 0.5, device=CPU, progress=False, precision=precision)
    assert found.precision == precision


def test_the_data_sets_and_classes_trained_on_are_kept(thresholds, calibration_shards):
    assert thresholds.datasets == ShardSet.open([calibration_shards]).datasets
    assert sorted(thresholds.trained_classes) == CLASSES


def test_calibration_images_that_were_trained_on_are_refused(checkpoint, calibration_shards, caplog):
    """An old run and new shards of its images, in which the split is another one."""
    shards = ShardSet.open([calibration_shards])
    classes = {
        name: [ref.entry for split in ("train", "calibration") for ref in shards.classes(split)[name]]
        for name in shards.classes("train")
    }
    seen = TrainedOn.of(shards.datasets, classes)
    state = {**checkpoint.state, "trained_on": json.loads(json.dumps(seen.entry()))}
    with pytest.raises(ValueError, match=r"5 of 5 calibration images are ones that .* was trained on \(.* and 2 more"):
        calibrate(dataclasses.replace(checkpoint, state=state), [calibration_shards], 0.5, device=CPU, progress=False)
    caplog.clear()
    del state["trained_on"]["samples"][CLASSES[0]]  # of a run that grew out of an older version's checkpoint
    shards_of_one = shards.those(lambda ref: ref.class_name == CLASSES[0])
    _check_unseen(dataclasses.replace(checkpoint, state=state), shards_of_one, [calibration_shards], warn=True)
    assert "does not say which images it was trained on" in caplog.text
    caplog.clear()
    del state["trained_on"]["samples"]
    older = dataclasses.replace(checkpoint, state=state)
    calibrate(older, [calibration_shards], 0.5, device=CPU, progress=False)
    assert "does not say which images it was trained on" in caplog.text
    own = TrainedOn.of(shards.datasets, {name: of_class[:1] for name, of_class in classes.items()})
    assert own.seen(entry for of_class in classes.values() for entry in of_class) == [
        entry.key for of_class in classes.values() for entry in of_class[:1]
    ]
    # Another dataset may have files of the same names and sizes.
    others = [dataclasses.replace(entry, dataset="others") for of_class in classes.values() for entry in of_class]
    assert own.seen(others) == []


def test_too_few_images_are_said(thresholds):
    lines = describe(thresholds).splitlines()
    assert "scored in fp32" in lines
    assert "solids/rope" in lines[5]
    assert "50.000%" in lines[5]
    assert "needs 99 calibration images of a class" in lines[-1]
    assert not any("is not used for images" in line for line in lines)
    of_banks = "note: all classes is not used for images whose class is not named"
    assert any(line.startswith(of_banks) for line in describe(thresholds, looks_at_class=True).splitlines())
    less = thresholds.model_copy(
        update={"classes": {n: c for n, c in thresholds.classes.items() if n != "solids/rope"}}
    )
    assert "no calibration image is of solids/rope: decided by the threshold of all" in describe(less).splitlines()[-1]


def test_without_the_split_it_says_what_to_do(checkpoint, calibration_shards, tmp_path):
    copy = changed(calibration_shards, tmp_path / "none", {"split": "train"})
    with pytest.raises(ValueError, match=r"none: no calibration split.*SOURCE.*train --data DIR.*with --data$"):
        calibrate(checkpoint, [copy], 0.01, device=CPU, progress=False)


def test_without_the_split_of_the_synthetic_set_the_commands_said_can_be_typed(
    checkpoint, calibration_shards, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    changed(calibration_shards, SYNTHETIC_FOLDER, {"split": "train"})
    with pytest.raises(ValueError, match="no calibration split") as raised:
        calibrate(checkpoint, [SYNTHETIC_FOLDER], 0.01, device=CPU, progress=False)
    made = "unimmad shards synthetic --target data/calibrated --calibration-fraction 0.2"
    assert f"({made}), train on those (unimmad train --data data/calibrated)" in str(raised.value)
    asked = shards_parser().parse_args(made.split()[2:])
    assert (asked.sources, asked.target, asked.calibration_fraction) == (["synthetic"], Path("data/calibrated"), 0.2)


def test_an_anomalous_image_in_the_split_is_named(checkpoint, calibration_shards, tmp_path):
    copy = changed(calibration_shards, tmp_path / "bad", {"anomalous": True})
    with pytest.raises(ValueError, match=r"sample \S+ of calibration has the defect good and anomalous True"):
        calibrate(checkpoint, [copy], 0.01, device=CPU, progress=False)


def test_a_rate_that_cannot_be_is_refused_before_anything_is_read(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="false-alarm rate of 2"):
        calibrate(checkpoint, [tmp_path / "gone"], 2, device=CPU)
