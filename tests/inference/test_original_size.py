"""Metrics at the images' original size: those of all pixels of the maps that a prediction gives, and of the masks as
they are stored, by slow and plain definitions."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from brightness import SIZE, Brightness
from hand_made import hand_made_checkpoint
from metrics.naive_metrics import aupro, aupro_99
from PIL import Image
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from unimmad.checkpoint.thresholds import load_thresholds
from unimmad.cli.calibrate import main as calibrate
from unimmad.cli.evaluate import main as evaluate
from unimmad.cli.shards import main as make_shards
from unimmad.comparing.results import CostEntry, Result, by_method
from unimmad.config import EvaluationSettings, TileSettings, load_recipe
from unimmad.data.index import DatasetEntry, Modality
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.roi import Area, Roi, Rois
from unimmad.data.views import Geometry, Tiles
from unimmad.evaluation import collecting
from unimmad.evaluation.letters import batch_letter, read_batch
from unimmad.evaluation.run import evaluate_classes
from unimmad.inference.catalogue import Catalogue
from unimmad.inference.detector import Detector
from unimmad.inference.engines import ModelEngine
from unimmad.inference.inputs import InputSample
from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.comparison import OtherReport, compare
from unimmad.report.measured_at import FACT, IN_WORDS, OF_PUBLISHED, published_beside
from unimmad.report.published import published_rows
from unimmad.report.report import ClassResult, Report

CPU = torch.device("cpu")
GEOMETRIES = {
    "stretch": Geometry(),
    "letterbox": Geometry("letterbox"),
    "crop": Geometry("crop"),
    "tiles": Geometry(tiles=Tiles(SIZE, 8)),
    "tiles and whole": Geometry("letterbox", Tiles(40, 8, whole=True)),
}
RIGHT = Roi(size=(120, 60), areas=(Area(polygon=((60, 0), (119, 0), (119, 59), (60, 59)), weight=0.6),))
SHAPES = {"good/0": (30, 60), "good/1": (33, 66), "dot/0": (40, 80), "dot/1": (30, 60), "dot/unmarked": (30, 60)}


@pytest.fixture(scope="module")
def pictures() -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Images of noise in several sizes, and which of their pixels are marked: two regions, or one."""
    rng, found = np.random.default_rng(3), {}
    for name, (height, width) in SHAPES.items():
        image = np.repeat(rng.integers(0, 200, (height, width, 1), np.uint8), 3, axis=2)
        marked = np.zeros((height, width), dtype=bool)
        if name in ("dot/0", "dot/1"):
            marked[height // 3 : height // 3 + 5, width // 2 + 2 : width // 2 + 9] = True
            marked[2:4, 2:7] = name == "dot/0"
        image[marked] += 40
        found[name] = image, None if name == "dot/unmarked" else marked
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory, pictures) -> ShardSet:
    folder = tmp_path_factory.mktemp("original")
    images = {f"test/{name}": image for name, (image, _) in pictures.items()}
    images |= {f"train/good/{number}": pictures["good/0"][0] + number for number in (8, 9)}
    for name, (_, marked) in pictures.items():
        if name.startswith("dot"):
            drawn = np.eye(*SHAPES[name]) if marked is None else marked
            images[f"ground_truth/{name}_mask"] = drawn.astype(np.uint8) * 255
    for name, image in images.items():
        path = folder / "raw" / "part" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    assert make_shards([str(folder / "raw"), "--target", str(folder / "shards"), "--calibration-fraction", "0"]) == 0
    index = json.loads((folder / "shards" / "index.json").read_text())
    by_key = {sample["key"].rpartition("-")[2]: sample for sample in index["samples"]}
    by_key["unmarked"]["mask"], by_key["8"]["split"] = None, "calibration"
    (folder / "shards" / "index.json").write_text(json.dumps(index))
    return ShardSet.open([folder / "shards"])


def scored_at(resolution, shards, geometry, scratch_dir=None):
    settings = EvaluationSettings(blur_sigma=1, batch_size=3, top_share=0.01, resolution=resolution)
    found = evaluate_classes(
        Brightness(),
        shards,
        "test",
        settings,
        device=CPU,
        workers=0,
        geometry=geometry,
        progress=False,
        scratch_dir=scratch_dir,
    )
    return next(found)


def slow_metrics(detector: Detector, pictures, geometry: Geometry) -> dict[str, float]:
    maps, masks = [], []
    samples = [InputSample(name, image) for name, (image, _) in pictures.items()]
    for found in detector.predict_all(samples, class_name="part"):
        marked = pictures[found.name][1]
        if marked is None:
            continue
        seen = np.zeros(marked.shape, dtype=bool)
        for view in geometry.views(marked.shape, SIZE):
            seen[view.source.pixels] = True
        seen &= True if found.weights_HW is None else found.weights_HW > 0
        box = np.ix_(seen.any(axis=1), seen.any(axis=0))
        assert seen[box].all(), "a rectangle"
        maps.append(found.map_HW[box])
        masks.append(marked[box])
    scores, labels = (np.concatenate([one.ravel() for one in many]) for many in (maps, masks))
    precision, recall, _ = precision_recall_curve(labels, scores)
    return {
        "P-AUROC": roc_auc_score(labels, scores),
        "P-AP": average_precision_score(labels, scores),
        "P-F1max": np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-12)),
        "AUPRO": aupro(maps, masks),
        "AUPRO-99": aupro_99(maps, masks),
    }


@pytest.mark.parametrize(
    ("name", "roi"),
    [*((name, None) for name in GEOMETRIES), ("letterbox", RIGHT), ("crop", RIGHT), ("tiles and whole", RIGHT)],
)
def test_they_are_those_of_all_pixels_of_predicted_maps(shards, pictures, name, roi, tmp_path, monkeypatch) -> None:
    """With what comes from another rank by letter, and pixels kept on disk."""
    geometry = GEOMETRIES[name]
    entry = DatasetEntry(
        field="industry",
        modalities=(Modality(name="rgb", slot=0, kind="rgb"),),
        roi={} if roi is None else {"part": roi},
    )
    looked_at = shards if roi is None else shards.with_rois(Rois({"raw/part": roi}))
    scored = scored_at("original", looked_at, geometry)
    settings = EvaluationSettings(blur_sigma=1, batch_size=3, top_share=0.01)
    engine = ModelEngine(Brightness(), settings, CPU, "fp32", geometry)
    expected = slow_metrics(Detector(engine, Catalogue({"raw": entry}, ("raw/part",))), pictures, geometry)
    assert {key: scored.result.metrics[key] for key in expected} == pytest.approx(expected, abs=1e-9)

    at_model = scored_at("model", looked_at, geometry)
    np.testing.assert_array_equal(scored.image_scores, at_model.image_scores)
    assert scored.result.metrics["P-AUROC"] != pytest.approx(at_model.result.metrics["P-AUROC"], abs=1e-4)
    assert scored.resizing.shrinking == at_model.resizing.shrinking

    of = collecting.ScoredBatch.of
    monkeypatch.setattr(collecting.ScoredBatch, "of", lambda *scored: read_batch(batch_letter(of(*scored))))
    assert scored_at("original", looked_at, geometry, tmp_path).result == scored.result


def test_numbers_of_different_sizes_stand_beside_each_other_by_name_alone() -> None:
    """A report from before there was a choice is of the model's size."""
    metrics = dict.fromkeys(METRIC_KEYS, 0.5)
    found = (ClassResult("visa", "industry", "candle", 1, 1, metrics),)
    older, at_model, original = (
        Report(header, found) for header in ({}, {FACT: IN_WORDS["model"]}, {FACT: IN_WORDS["original"]})
    )
    assert compare(at_model, OtherReport("other", older)).notes == ()
    (note,) = compare(original, OtherReport("other", older)).notes
    assert note.startswith("metrics at: each image's original size")
    assert note.endswith("the model's image size (other): pixel metrics of different sizes are not to be compared")

    cost = CostEntry(parameters=1, trained=1, gflop=1, images_per_second=1, peak_gib=1, device="cpu")
    results = [Result("rd", seed, report, 1, 1.0, cost) for seed, report in enumerate((older, at_model))]
    assert len(by_method(results, [])) == 1
    with pytest.raises(ValueError, match=r"at different sizes, .*; rd, seed 1: the model's image size"):
        by_method([*results, Result("vitad", 0, original, 1, 1.0, cost)], [])

    rows = published_rows(["visa"])
    assert published_beside(rows, "model") == rows
    assert all(row.note.startswith(OF_PUBLISHED) for row in published_beside(rows, "original"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0", "tiles '0': write them as SIZE, SIZE:OVERLAP or SIZE:OVERLAP:whole"),
        ("64:8:all", "write them as SIZE"),
        ("8", "tiles 8: size 8 makes too many tiles"),
        ("64:40", "tiles 64:40: overlap 40 must be at most half of size 64"),
    ],
)
def test_tiles_are_typed_in_one_form(text, says) -> None:
    with pytest.raises(ValueError, match=says):
        TileSettings.parse(text)
    assert TileSettings.parse("40") == TileSettings(size=40, overlap=20)
    assert TileSettings.parse("64:8:whole") == TileSettings(size=64, overlap=8, whole=True)
    assert TileSettings.parse("none").same_views(TileSettings(overlap=7))


def test_tiles_from_the_command_line_and_the_thresholds_that_hold_for_them(shards, tmp_path, capsys) -> None:
    recipe = load_recipe("tiny", ["evaluation.pictures_per_class=0"])
    folder, _ = hand_made_checkpoint(tmp_path / "run", recipe, shards.folders)
    words = ["--checkpoint", str(folder), "--device", "cpu", "--workers", "0"]
    assert calibrate([*words, "--tiles", "24:8"]) == 0
    assert load_thresholds(folder).tiles == TileSettings(size=24, overlap=8)

    def header(name: str, *more: str) -> dict[str, str]:
        assert evaluate([*words, "--output-dir", str(tmp_path / name), *more]) == 0
        assert "metrics at:" in capsys.readouterr().out
        return json.loads((tmp_path / name / "report.json").read_text())["header"]

    tiled = header("tiled", "--tiles", "24:8", "--resolution", "original")
    assert tiled[FACT].startswith("each image's original size")
    assert tiled["masks"] == "as stored, anomalous where > 0"
    assert tiled["tiles"].startswith("24 x 24 pixels, 8 shared; an image's score is the highest of its tiles'; train")
    assert tiled["thresholds"].startswith("images: calibrated for")
    plain = header("plain", "--compare", str(tmp_path / "tiled"))
    assert plain[FACT] == "the model's image size"
    assert plain["thresholds"].startswith("no threshold holds for whole images: calibrated by tiles of 24, 8 shared")
    assert "not to be compared" in (tmp_path / "plain" / "comparison.md").read_text()
    assert evaluate([*words, "--resolution", "original", "--mask-resize", "area"]) == 2
    assert "--mask-resize: of no effect at the images' original resolution" in capsys.readouterr().err

    image = np.zeros((50, 60, 3), np.uint8)
    decided = Detector.open(folder, device="cpu", tiles="24:8").predict(image, class_name="part")
    undecided = Detector.open(folder, device="cpu").predict(image, class_name="part")
    assert decided.threshold is not None
    assert (undecided.threshold, undecided.notes[-1]) == (None, plain["thresholds"])
