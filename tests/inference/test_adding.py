"""A class added from a few images: what is kept of it, how it is scored and decided, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unimmad.checkpoint.added_classes import FOLDER, load_added, with_added_classes
from unimmad.checkpoint.conformal import thresholds_by_sensors
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.monitoring import Described, ImageSet, MonitoringReference, load_reference, save_reference
from unimmad.checkpoint.thresholds import load_thresholds, save_thresholds
from unimmad.cli.add_class import main
from unimmad.cli.calibrate import main as calibrate
from unimmad.data.index import load_index
from unimmad.data.reading.shard_set import ShardSet
from unimmad.evaluation.evaluate import evaluate_checkpoint
from unimmad.evaluation.image_statistics import pooled_features
from unimmad.inference.adding import MOST_IMAGES
from unimmad.inference.detector import Detector
from unimmad.inference.engines import ModelEngine
from unimmad.inference.reading import IN_BANK
from unimmad.report.at_threshold import at_threshold_table

BOLT = "added/bolt"
MODALITIES = ("rgb", "depth")


@pytest.fixture(scope="module")
def images(calibration_shards, tmp_path_factory) -> Path:
    """One folder a modality, of a class's three normal images."""
    shards, folder = ShardSet.open([calibration_shards]), tmp_path_factory.mktemp("bolt")
    refs = [ref for split in ("train", "calibration", "test") for ref in shards.classes(split)["solids/cookie"]]
    for ref in (ref for ref in refs if not ref.entry.anomalous):
        for name, member in ref.entry.images.items():
            path = folder / name / f"{ref.entry.key}{Path(member.name).suffix}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(shards.member_bytes(ref, member))
    return folder


@pytest.fixture
def checkpoint(checkpoint_folder, calibration_shards, tmp_path) -> Path:
    """A copy, calibrated for another class with as many modalities."""
    copy = tmp_path / "checkpoint"
    shutil.copytree(checkpoint_folder, copy)
    datasets = load_index(calibration_shards).datasets
    scores, known = {"solids/rope": {tuple(MODALITIES): [0.4, 0.2, 0.1]}}, ("solids/rope", "solids/cookie")
    save_thresholds(thresholds_by_sensors(scores, datasets, known, 0.4), copy)
    return copy


def add(checkpoint: Path, *words: object) -> int:
    return main(["--device", "cpu", "--checkpoint", str(checkpoint), *map(str, words)])


def sample_of(images: Path) -> dict[str, Path]:
    name = sorted(path.stem for path in (images / "rgb").iterdir())[0]
    return {modality: next((images / modality).glob(f"{name}.*")) for modality in MODALITIES}


def test_a_class_is_added_scored_replaced_and_removed(checkpoint, images, capsys):
    before = Detector.from_checkpoint(checkpoint, device="cpu")
    unknown = before.predict(sample_of(images), class_name="solids/rope")
    assert add(checkpoint, "--class", "bolt", images) == 0
    assert "added/bolt: added from 3 images, threshold not promised: 2 times its typical" in capsys.readouterr().out
    moved = checkpoint.with_name("elsewhere")
    checkpoint.rename(moved)
    detector = Detector.from_checkpoint(moved, device="cpu")
    found = detector.predict(sample_of(images), class_name="bolt")
    assert (found.class_name, found.threshold_of, found.threshold_promised) == (BOLT, BOLT, False)
    (threshold,) = detector.added[BOLT].entry.thresholds
    assert threshold.fpr_bound == 1
    assert threshold.images == 3
    assert threshold.typical is not None
    assert found.threshold == threshold.value >= 2 * threshold.typical - 1e-9
    assert any("threshold not promised" in note for note in found.notes)
    assert found.score < threshold.typical, "an image that is in the bank; left out it was scored higher"
    assert found.anomalous is False
    assert IN_BANK in found.notes
    noise = {name: np.random.default_rng(0).permuted(image, axis=0) for name, image in _arrays(images).items()}
    other = detector.predict(noise, class_name="bolt")
    assert other.score > found.score
    assert IN_BANK not in other.notes
    alone = detector.predict({"rgb": sample_of(images)["rgb"]}, class_name="bolt")
    assert alone.threshold is None
    assert any("was added with rgb + depth" in note for note in alone.notes)
    known = detector.predict(sample_of(images), class_name="solids/rope")
    assert known.score == unknown.score
    assert IN_BANK not in known.notes
    assert known.threshold_promised is True
    np.testing.assert_array_equal(known.map_HW, unknown.map_HW)
    twice = with_copies(images, moved)
    assert add(moved, "--class", "twin", twice) == 0
    said = capsys.readouterr().out
    assert "note: added/twin: 3 images are there twice and count once: twice/z-" in said
    assert "note: of the images of added/twin 3 of 3 are those of added/bolt, too" in said
    twin = Detector.from_checkpoint(moved, device="cpu").added["added/twin"]
    assert [one.value for one in twin.entry.thresholds] == pytest.approx([threshold.value], rel=1e-4)
    assert add(moved, "--remove", "twin") == 0
    first = detector.added[BOLT].entry.sha256
    assert add(moved, "--class", "bolt", "--replace", "--images", "1", images) == 0
    assert load_added(moved, load_checkpoint(moved).weights_digest)[0].entry.sha256 != first
    assert add(moved, "--remove", "bolt") == 0
    assert not list((moved / FOLDER).iterdir())
    assert (
        Detector.from_checkpoint(moved, device="cpu").predict(sample_of(images), class_name="bolt").class_name is None
    )


def test_images_that_hold_one_value_are_named(checkpoint, tmp_path, capsys):
    (folder := tmp_path / "dark" / "rgb").mkdir(parents=True)
    for name, value in (("a", 9), ("b", 10)):
        Image.new("RGB", (64, 64), (value, value, value)).save(folder / f"{name}.png")
    assert add(checkpoint, "--class", "dark", folder.parent) == 0
    assert "note: added/dark: 2 of 2 images hold one value only, and say nothing" in capsys.readouterr().out


def with_copies(images: Path, beside: Path) -> Path:
    """All images, and each once more under another name."""
    twice = beside.with_name("twice")
    for path in images.glob("*/*"):
        for name in (path.name, f"z-{path.name}"):
            (twice / path.parent.name).mkdir(parents=True, exist_ok=True)
            (twice / path.parent.name / name).write_bytes(path.read_bytes())
    return twice


def _arrays(images: Path) -> dict[str, np.ndarray]:
    from unimmad.data.decode import decode_image

    return {name: decode_image(path.read_bytes(), path.suffix, name) for name, path in sample_of(images).items()}


def test_evaluation_knows_added_classes_and_says_what_their_thresholds_are(
    checkpoint, calibration_shards, tmp_path, capsys
):
    """The same shards under a name that the model does not know, of one class with two modalities."""
    shards = tmp_path / "more"
    shutil.copytree(calibration_shards, shards)
    text = (shards / "index.json").read_text().replace('"solids"', '"mine"')
    index = json.loads(text)
    index["samples"] = [one for one in index["samples"] if one["dataset"] == "mine" and one["class_name"] == "cookie"]
    index["datasets"] = {"mine": index["datasets"]["mine"]}
    (shards / "index.json").write_text(json.dumps(index))
    assert add(checkpoint, shards) == 0, capsys.readouterr().err
    loaded = load_checkpoint(checkpoint)
    output = tmp_path / "report"
    found = evaluate_checkpoint(loaded, [shards], output, device=torch.device("cpu"), workers=0, progress=False)
    assert found is not None
    assert found.report.header["added classes"].startswith("mine/cookie added from 1 image, threshold not promised")
    assert "not trained on" not in found.report.header
    table = at_threshold_table(found.report)
    assert table is not None
    assert any("without a promised" in note for note in table.notes)
    known = with_added_classes(load_checkpoint(checkpoint))
    assert known.weights_digest != loaded.weights_digest
    assert with_added_classes(known) is known
    thresholds = load_thresholds(checkpoint)
    assert thresholds is not None
    scores = {"solids/rope": {MODALITIES: [0.4, 0.2, 0.1]}, "mine/cookie": {MODALITIES: [9.0, 8.0, 7.0]}}
    save_thresholds(thresholds_by_sensors(scores, thresholds.datasets, thresholds.trained_classes, 0.1), checkpoint)
    images = [ImageSet(class_name=name, modality="rgb", images=3, usual_of=0, statistics={}) for name in scores]
    reference = MonitoringReference(Described(weights=loaded.weights_digest, scores=[], images=images))
    save_reference(reference, checkpoint)
    assert add(checkpoint, "--remove", "cookie") == 0
    after, watched = load_thresholds(checkpoint), load_reference(checkpoint)
    assert after is not None
    assert watched is not None
    assert set(after.classes) == watched.classes == {"solids/rope"}, "the other's held for the bank that is gone"
    assert after.all_classes.value == after.sensor_sets[0].value == after.classes["solids/rope"].value
    only = thresholds_by_sensors({"mine/cookie": scores["mine/cookie"]}, thresholds.datasets, (), 0.1)
    assert only.without("mine/cookie") is None


def test_what_cannot_be_added_is_refused_in_one_line(checkpoint, images, tmp_path, capsys):
    def refused(*words: object) -> str:
        assert add(checkpoint, *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "says no class: name it with --class NAME" in refused(images)
    assert "is one that the model was trained on" in refused("--class", "solids/cookie", images)
    assert "does not exist" in refused("--class", "bolt", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "holds no image" in refused("--class", "bolt", tmp_path / "empty")
    thermal = tmp_path / "other" / "thermal"
    shutil.copytree(images / "rgb", thermal)
    assert "none is a modality that is known (rgb, depth)" in refused("--class", "bolt", tmp_path / "other")
    many = tmp_path / "many"
    for modality in MODALITIES:
        (many / modality).mkdir(parents=True)
        source = sample_of(images)[modality]
        for number in range(MOST_IMAGES + 1):
            shutil.copyfile(source, many / modality / f"{number}{source.suffix}")
    assert f"has 51 normal images, more than {MOST_IMAGES}: --images 50" in refused("--class", "bolt", many)
    assert "--images 4: class added/bolt has 3" in refused("--class", "bolt", "--images", 4, images)
    assert "no such class was added; added: none" in refused("--remove", "bolt")
    assert not (checkpoint / FOLDER).exists()
    assert add(checkpoint, "--class", "bolt", "--images", 1, images) == 0
    capsys.readouterr()
    assert "was added already: give --replace" in refused("--class", "bolt", images)
    (file,) = (checkpoint / FOLDER).iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="damaged, or altered; add the class again"):
        Detector.from_checkpoint(checkpoint, device="cpu")
    file.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="is damaged"):
        Detector.from_checkpoint(checkpoint, device="cpu")
    file.write_bytes(whole)
    with pytest.raises(ValueError, match="was made for other weights"):
        load_added(checkpoint, "0" * 64)


def test_a_name_that_the_model_knows_elsewhere_needs_its_dataset(checkpoint, images, capsys):
    assert add(checkpoint, "--class", "cookie", images) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--class cookie: the model knows solids/cookie; give the new class another name" in line
    assert line.endswith("--class added/cookie")
    assert not (checkpoint / FOLDER).exists()
    assert add(checkpoint, "--class", "added/cookie", "--images", 1, images) == 0
    said = capsys.readouterr().out
    assert "note: cookie is a class of several datasets from now on, solids/cookie, added/cookie: --class cook" in said
    assert add(checkpoint, "--class", "added/cookie", "--images", 1, "--replace", images) == 0
    assert "from now on" not in capsys.readouterr().out
    assert add(checkpoint, "--class", "bolt", "--images", 1, images) == 0
    assert "ambiguous" not in capsys.readouterr().out


def test_calibrating_watching_tiling_and_exporting_go_with_an_added_class(
    checkpoint_folder, calibration_shards, images, tmp_path, capsys
):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(checkpoint_folder, checkpoint)
    words = ["--checkpoint", str(checkpoint), "--data", str(calibration_shards), "--device", "cpu", "--workers", "0"]
    assert calibrate(words) == 0, capsys.readouterr().err
    assert add(checkpoint, "--class", "bolt", images) == 0, capsys.readouterr().err
    assert add(checkpoint, "--class", "nail", images / "rgb") == 0, capsys.readouterr().err
    detector = Detector.from_checkpoint(checkpoint, device="cpu")
    detector.start_monitor()
    bolt, rope = (detector.predict(sample_of(images), class_name=name) for name in ("bolt", "solids/rope"))
    assert bolt.threshold_of == BOLT, "another class of its dataset has fewer modalities"
    assert rope.statistics is not None
    assert isinstance(detector.engine, ModelEngine)
    model = detector.engine.model
    assert pooled_features(model, torch.zeros(1, 3, model.image_size, model.image_size)).shape[1] > 0
    with pytest.raises(ValueError, match="class added/nail was added without depth"):
        detector.predict(sample_of(images), class_name="nail")
    tiled = Detector.from_checkpoint(checkpoint, device="cpu", tiles="32")
    found = tiled.predict(sample_of(images), class_name="bolt")
    assert found.threshold is None
    assert any("added/bolt was added with" in note for note in found.notes)
    thresholds = load_thresholds(checkpoint)
    assert thresholds is not None
    left = thresholds.only("solids", without={"solids/rope"})
    assert left is not None
    assert list(left.classes) == ["solids/cookie"]
    assert left.trained_classes == ("solids/cookie",)
    assert left.all_classes.value == left.classes["solids/cookie"].value
    assert thresholds.only("solids", without={"solids/rope", "solids/cookie"}) is None
