"""The detector gives a sample the score that evaluation gives it, and decides by the threshold that holds for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made import maps_of
from PIL import Image

import unimmad
from unimmad.checkpoint.conformal import thresholds_by_sensors
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.normal_maps import load_normal_maps, save_normal_maps
from unimmad.checkpoint.thresholds import Thresholds
from unimmad.data.index import Split
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.sample import collate
from unimmad.data.views import put_back, whole
from unimmad.evaluation.normal_maps import measure_normals
from unimmad.inference.calibration import calibrate
from unimmad.inference.deciding import ALL_CLASSES
from unimmad.inference.detector import Detector
from unimmad.inference.engines import ModelEngine
from unimmad.inference.inputs import InputSample

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(calibration_shards) -> ShardSet:
    return ShardSet.open([calibration_shards])


@pytest.fixture(scope="module")
def thresholds(checkpoint_folder, calibration_shards) -> Thresholds:
    checkpoint = load_checkpoint(checkpoint_folder)
    return calibrate(checkpoint, [calibration_shards], 0.5, device=CPU, progress=False)


@pytest.fixture(scope="module")
def plain(checkpoint_folder) -> Detector:
    return Detector.from_checkpoint(checkpoint_folder, device="cpu")


@pytest.fixture(scope="module")
def detector(plain, thresholds) -> Detector:
    return Detector(plain.engine, plain.catalogue, thresholds)


def files_of(shards: ShardSet, class_name: str, folder: Path, split: Split = "test") -> list[InputSample]:
    """A class's samples, unpacked."""
    samples = []
    for ref in shards.classes(split)[class_name]:
        images = {}
        for name, member in ref.entry.images.items():
            path = folder / f"{ref.entry.key}-{name}{Path(member.name).suffix}"
            path.write_bytes(shards.member_bytes(ref, member))
            images[name] = path
        samples.append(InputSample(ref.entry.key, images))
    return samples


@pytest.fixture(scope="module")
def cookies(shards, tmp_path_factory) -> list[InputSample]:
    return files_of(shards, "solids/cookie", tmp_path_factory.mktemp("cookies"))


@pytest.fixture(scope="module")
def cloths(shards, tmp_path_factory) -> list[InputSample]:
    return files_of(shards, "materials/cloth", tmp_path_factory.mktemp("cloths"))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_scores_and_maps_are_those_of_evaluation(plain, checkpoint_folder, shards, cookies, batch_size):
    checkpoint = load_checkpoint(checkpoint_folder)
    batch = collate([shards.read(ref, 64) for ref in shards.classes("test")["solids/cookie"]])
    maps_BHW, scores_B = maps_of(checkpoint.model, batch, checkpoint.recipe.evaluation)
    found = list(plain.predict_all(cookies, batch_size=batch_size))
    assert [prediction.name for prediction in found] == [sample.name for sample in cookies]
    for prediction, map_HW, score in zip(found, maps_BHW, scores_B.tolist(), strict=True):
        assert prediction.score == pytest.approx(score, rel=1e-5)
        at_its_size = put_back(map_HW.numpy(), whole((128, 128), 64), (128, 128))
        np.testing.assert_allclose(prediction.map_HW, at_its_size, rtol=1e-4, atol=1e-5)
        assert prediction.modalities == ("rgb", "depth")


def test_samples_of_one_and_two_modalities_share_a_batch(plain, cookies, cloths):
    together = list(plain.predict_all([*cookies, *cloths], batch_size=4))
    alone = [plain.predict(sample.images) for sample in (*cookies, *cloths)]
    assert [p.score for p in together] == pytest.approx([p.score for p in alone], rel=1e-5)


def test_arrays_and_files_are_scored_alike(plain, cloths):
    file = cloths[0].images["rgb"]
    array = np.asarray(Image.open(file))
    by_array = plain.predict({"rgb": array})
    assert by_array.score == plain.predict(str(file)).score == plain.predict(array).score
    assert by_array.files == {}
    assert plain.predict(file).files == {"rgb": str(file)}


@pytest.mark.parametrize("shape", [(1, 1), (9, 300), (333, 40), (64, 64)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_images_of_any_size_and_bit_depth(plain, shape, dtype):
    top = {np.uint8: 255, np.uint16: 65535, np.float32: 1}[dtype]
    pixels = (np.random.default_rng(0).random((*shape, 3)) * top).astype(dtype)
    for array in (pixels, pixels[:, :, 0]):
        assert np.isfinite(plain.predict(array).score)


def test_without_thresholds_there_is_a_score_alone(plain, cookies):
    found = plain.predict(cookies[0].images, class_name="cookie")
    assert (found.anomalous, found.threshold, found.threshold_of) == (None, None, None)
    assert found.class_name == "solids/cookie"


def test_a_known_class_is_decided_by_its_own_threshold(detector, thresholds, cookies):
    own = thresholds.classes["solids/cookie"]
    for sample in cookies:
        found = detector.predict(sample.images, class_name="cookie")
        assert (found.threshold, found.threshold_of) == (own.value, "solids/cookie")
        assert found.anomalous is (found.score > own.value)
        assert found.notes == ()


def test_too_few_calibration_images_for_the_rate_are_said_with_each_decision(plain, thresholds, cookies):
    strict = Detector(plain.engine, plain.catalogue, thresholds.model_copy(update={"false_alarm_rate": 0.01}))
    found = strict.predict(cookies[0].images, class_name="cookie")
    assert found.notes == ("1 calibration image promises a false-alarm rate of 0.5 only",)


@pytest.mark.parametrize(
    ("made_in", "notes"), [("bf16", ("scored in fp32, by thresholds of scores in bf16",)), (None, ())]
)
def test_thresholds_of_another_precision_are_said_with_each_decision(plain, thresholds, cookies, made_in, notes):
    other = Detector(plain.engine, plain.catalogue, thresholds.model_copy(update={"precision": made_in}))
    assert other.predict(cookies[0].images, class_name="cookie").notes == notes


@pytest.mark.parametrize("class_name", [None, "spoon"])
def test_no_class_or_an_unknown_one_is_decided_by_the_threshold_of_all(detector, thresholds, cookies, class_name):
    found = detector.predict(cookies[0].images, class_name=class_name)
    assert (found.threshold, found.threshold_of) == (thresholds.of_all(("rgb", "depth")).value, ALL_CLASSES)
    assert found.class_name is None
    assert "decided by the threshold of all classes" in found.notes
    said = "class spoon is not one that the model was trained on: known are "
    assert any(note.startswith(said) for note in found.notes) is (class_name == "spoon")
    assert found.threshold_promised is (class_name is None), "of a class that gave no calibration image none is known"
    assert any("no calibration image was of class spoon" in note for note in found.notes) is (class_name == "spoon")


@pytest.mark.parametrize("class_name", ["Cooky", "SOLIDS/COOKIE", "solid/cookie"])
def test_a_misspelt_class_is_told_the_nearest_and_all(detector, cookies, class_name):
    note = detector.predict(cookies[0].images, class_name=class_name).notes[0]
    assert f"class {class_name} is not one that the model was trained on: did you mean solids/cookie? Known are" in note
    assert all(name in note for name in detector.catalogue.classes)


def test_where_scores_depend_on_the_class_it_is_asked_for_unless_one_was_named(detector, cookies, monkeypatch):
    monkeypatch.setattr(ModelEngine, "looks_at_class", property(lambda _: True))
    unnamed, misspelt = (detector.predict(cookies[0].images, class_name=name) for name in (None, "Cooky"))
    known = ", ".join(detector.catalogue.classes)
    asked = f"no threshold holds where the class is not known: name it: --class, one of {known}"
    assert (unnamed.threshold, unnamed.notes) == (None, (asked,))
    assert "did you mean solids/cookie?" in misspelt.notes[0]
    assert misspelt.notes[1:] == ("no threshold holds where the class is not known",)


def test_a_sample_without_one_of_its_modalities_is_scored_and_not_decided(detector, cookies):
    found = detector.predict({"depth": cookies[0].images["depth"]}, class_name="cookie")
    assert found.modalities == ("depth",)
    assert found.anomalous is None
    assert found.notes[0] == "scored without rgb"


def test_calibration_without_all_sensors_decides_for_the_sets_that_it_had(plain, thresholds, cookies):
    scores = {"solids/cookie": {("rgb",): [0.1] * 3, ("depth",): [9.0] * 4}}
    made = thresholds_by_sensors(scores, plain.catalogue.datasets, plain.catalogue.classes, 0.3)
    detector = Detector(plain.engine, plain.catalogue, made)
    whole = detector.predict(cookies[0].images, class_name="cookie")
    said = "no threshold holds for these modalities: solids/cookie calibrated with depth or rgb"
    assert (whole.anomalous, whole.notes) == (None, (said,))
    for class_name, of in (("cookie", "solids/cookie"), (None, ALL_CLASSES)):
        depth = detector.predict({"depth": cookies[0].images["depth"]}, class_name=class_name)
        assert (depth.threshold, depth.anomalous, depth.threshold_of) == (9.0, False, of)
        rgb = detector.predict({"rgb": cookies[0].images["rgb"]}, class_name=class_name or "solids/new")
        assert rgb.threshold == 0.1


def test_the_image_that_gave_the_threshold_is_normal_at_any_batch_size(detector, shards, tmp_path):
    for class_name in ("solids/cookie", "materials/cloth"):
        (own,) = files_of(shards, class_name, tmp_path, "calibration")
        for batch_size in (1, 3, 8):
            samples = [InputSample(str(number), own.images) for number in range(batch_size)]
            found = detector.predict_all(samples, class_name=class_name, batch_size=batch_size)
            assert {prediction.anomalous for prediction in found} == {False}


def test_colours_mean_the_same_for_all_images_also_without_thresholds(
    plain, detector, checkpoint_folder, shards, cookies, tmp_path
):
    measured = measure_normals(load_checkpoint(checkpoint_folder), shards, CPU)
    save_normal_maps(measured, tmp_path)
    assert load_normal_maps(tmp_path) == measured
    assert (measured.split, len(measured.sets)) == ("calibration", 5)
    (own,) = (one for one in measured.sets if one.class_name == "solids/cookie")
    coloured = Detector(plain.engine, plain.catalogue, normal_maps=measured)
    for sample in cookies:
        found = coloured.predict(sample.images, class_name="cookie")
        assert found.limits == pytest.approx((own.usual, 2 * own.highest - own.usual))
        decided = detector.predict(sample.images, class_name="cookie")
        assert decided.limits == pytest.approx(found.limits, rel=1e-4), "its threshold is that image's score"
    assert coloured.predict(cookies[0].images).limits is not None
    assert coloured.predict({"depth": cookies[0].images["depth"]}).limits is None
    assert plain.predict(cookies[0].images).limits is None
    (tmp_path / "normal_maps.json").write_text('{"split": "train", "sets": 3}')
    with pytest.raises(ValueError, match=r"normal_maps.json: sets: .*; remove it: it is for the colours"):
        load_normal_maps(tmp_path)


def test_pictures_only_where_asked_for_and_of_every_modality(plain, cookies):
    (with_pictures,) = plain.predict_all(cookies[:1], with_pictures=True)
    assert [name for name, _ in with_pictures.pictures] == ["rgb", "depth"]
    assert plain.predict(cookies[0].images).pictures == ()


@pytest.mark.parametrize(
    ("images", "told"),
    [
        ({"rgb": None}, "^image, rgb: an image is a file's path or a NumPy array, not NoneType None$"),
        ([1], r"^image: an image is a file's path or a NumPy array, not list \[1\]$"),
        ({0: "part.png"}, "^image: a modality's name is a str such as 'rgb', not 0$"),
        ({}, "^image: no image was given; pass some by modality name, such as {'rgb': 'part.png'}$"),
    ],
)
def test_what_is_no_image_is_told_with_what_to_pass(plain, images, told):
    with pytest.raises(ValueError, match=told):
        plain.predict(images)


def test_a_class_that_is_no_name_is_told_with_what_to_pass(plain, cookies):
    with pytest.raises(ValueError, match=r"^class_name is a str such as 'cookie' or 'solids/cookie', or None, not 3$"):
        plain.predict(cookies[0].images, class_name=3)


def test_images_of_two_sizes_are_refused_by_name(plain, tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    with pytest.raises(ValueError, match="depth is 8 x 9 pixels"):
        plain.predict({"rgb": pixels, "depth": np.zeros((9, 8), np.uint16)})
    (tmp_path / "broken.png").write_bytes(b"no png")
    with pytest.raises(ValueError, match=r"broken.png: does not open as PNG"):
        plain.predict({"rgb": tmp_path / "broken.png"})
    with pytest.raises(ValueError, match=r"gone.png: can't be read"):
        plain.predict({"rgb": tmp_path / "gone.png"})
    with pytest.raises(ValueError, match=r"image: modality thermal is not known; known are rgb, depth"):
        plain.predict({"thermal": pixels})


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("place", [0, 2, 3])
def test_what_comes_before_an_error_is_given_first(plain, cloths, tmp_path, place, batch_size):
    (tmp_path / "broken.png").write_bytes(b"no png")
    good = [InputSample(str(number), cloths[0].images) for number in range(4)]

    def ending_in_an_error():
        yield from good[:place]
        raise KeyError("the source's own")

    with_broken = [*good[:place], InputSample("broken", tmp_path / "broken.png"), *good[place:]]
    for samples, error in (with_broken, ValueError), (ending_in_an_error(), KeyError):
        found = plain.predict_all(samples, batch_size=batch_size)
        assert [next(found).name for _ in range(place)] == [str(number) for number in range(place)]
        with pytest.raises(error, match=r"broken.png: does not open as PNG|the source's own"):
            next(found)


def test_samples_that_cannot_be_scored_are_skipped_where_asked_for(plain, cloths, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no png")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    with (tmp_path / "large.png").open("wb") as stream:
        stream.truncate(2**28 + 1)
    bad = ["broken", "folder", "pipe", "device", "large", "gone"]
    samples = [InputSample(name, tmp_path / f"{name}.png") for name in bad]
    samples.insert(2, InputSample("good", cloths[0].images))
    samples.append(InputSample("other", {"thermal": cloths[0].images["rgb"]}))
    skipped: dict[str, str] = {}
    found = plain.predict_all(samples, batch_size=3, on_skip=lambda name, error: skipped.update({name: str(error)}))
    assert [prediction.name for prediction in found] == ["good"]
    assert list(skipped) == [*bad, "other"]
    assert "is not a plain file" in skipped["pipe"]
    assert "is not a plain file" in skipped["device"]
    assert "more than an image may have" in skipped["large"]


def test_a_sample_whose_result_is_refused_is_skipped_where_asked_for(plain, cloths, monkeypatch):
    decide = plain._prediction

    def refusing(sample, *others):
        if sample.name == "1":
            raise ValueError("1: not usable")
        return decide(sample, *others)

    monkeypatch.setattr(plain, "_prediction", refusing)
    samples = [InputSample(str(number), cloths[0].images) for number in range(3)]
    skipped: list[str] = []
    found = plain.predict_all(samples, on_skip=lambda name, error: skipped.append(f"{name} {error}"))
    assert [prediction.name for prediction in found] == ["0", "2"]
    assert skipped == ["1 1: not usable"]
    with pytest.raises(ValueError, match="1: not usable"):
        list(plain.predict_all(samples))


def test_a_checkpoint_whose_data_are_gone_says_what_to_do(checkpoint_folder, calibration_shards, monkeypatch, tmp_path):
    moved = calibration_shards.rename(calibration_shards.with_name("moved"))
    try:
        with pytest.raises(ValueError, match=r"is not here to say which modalities .*--data DIR"):
            Detector.from_checkpoint(checkpoint_folder)
        assert Detector.from_checkpoint(checkpoint_folder, data=[moved]).catalogue.modality_names == ("rgb", "depth")
    finally:
        moved.rename(calibration_shards)


def test_a_device_that_is_not_there_is_refused(checkpoint_folder):
    with pytest.raises(ValueError, match="device cuda:99 can't be used here"):
        Detector.from_checkpoint(checkpoint_folder, device="cuda:99")


def test_the_package_is_light_until_its_detector_is_asked_for():
    code = "import sys, unimmad; print('torch' in sys.modules); unimmad.Detector; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["False", "True"]
    with pytest.raises(AttributeError, match="Detectr"):
        unimmad.Detectr  # noqa: B018


def test_prediction_and_evaluation_run_without_deepspeed(checkpoint_folder, cloths, tmp_path):
    words = [
        "--checkpoint",
        str(checkpoint_folder),
        "--output-dir",
        str(tmp_path / "out"),
        str(cloths[0].images["rgb"]),
    ]
    code = (
        "import sys; sys.modules['deepspeed'] = None\n"
        "import unimmad.evaluation.evaluate, unimmad.cli.export\n"
        f"from unimmad.cli.predict import main; sys.exit(main({words!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "predictions.jsonl").read_text().count("\n") == 1
