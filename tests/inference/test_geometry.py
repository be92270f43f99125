"""What is painted into an image is found in the same place of its map, by every path and every way to a square."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from brightness import SIZE, Brightness
from PIL import Image

from unimmad.cli.shards import main as make_shards
from unimmad.config import EvaluationSettings
from unimmad.data.index import DatasetEntry, Modality
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.roi import Area, Roi, Rois
from unimmad.data.views import Geometry, Tiles
from unimmad.evaluation.run import evaluate_classes
from unimmad.evaluation.shared_drawing import sample_picture
from unimmad.inference.catalogue import Catalogue
from unimmad.inference.detector import Detector
from unimmad.inference.engines import ModelEngine
from unimmad.inference.inputs import InputSample

CPU = torch.device("cpu")
SETTINGS = EvaluationSettings(blur_sigma=0, batch_size=4, top_share=1e-9)
CATALOGUE = Catalogue(
    {"raw": DatasetEntry(field="industry", modalities=(Modality(name="rgb", slot=0, kind="rgb"),))}, ("raw/part",)
)
GEOMETRIES = {
    "stretch": Geometry(),
    "letterbox": Geometry("letterbox"),
    "crop": Geometry("crop"),
    "tiles": Geometry(tiles=Tiles(SIZE, 8)),
    "tiles and whole": Geometry("letterbox", Tiles(48, 8, whole=True)),
}


def detector(geometry: Geometry) -> Detector:
    return Detector(ModelEngine(Brightness(), SETTINGS, CPU, "fp32", geometry), CATALOGUE)


def painted(height: int, width: int, top: int, left: int, side: int) -> np.ndarray:
    image = np.full((height, width, 3), 60, np.uint8)
    image[top : top + side, left : left + side] = 255
    return image


def place_of(map_HW: np.ndarray) -> tuple[float, float]:
    """Middle of what is brighter than half of the brightest."""
    row, column = np.argwhere(map_HW > (map_HW.min() + map_HW.max()) / 2).mean(axis=0) + 0.5
    return row, column


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    """One class of wide images, 50 x 120; of the anomalous one 6 x 6 pixels are bright, and so is its mask."""
    folder = tmp_path_factory.mktemp("geometry")
    images = {"train/good/0": painted(50, 120, 0, 0, 0), "test/good/0": painted(50, 120, 0, 0, 0)}
    images["test/dot/0"] = painted(50, 120, 20, 62, 6)
    for name, image in images.items():
        path = folder / "raw" / "part" / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(image).save(path)
    mask = folder / "raw/part/ground_truth/dot/0_mask.png"
    mask.parent.mkdir(parents=True)
    Image.fromarray((images["test/dot/0"][:, :, 0] == 255).astype(np.uint8) * 255).save(mask)
    words = [str(folder / "raw"), "--target", str(folder / "shards"), "--calibration-fraction", "0"]
    assert make_shards(words) == 0
    return ShardSet.open([folder / "shards"])


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_painted_spot_is_found_where_it_was_by_prediction_evaluation_and_pictures(shards, name, tmp_path) -> None:
    geometry, model = GEOMETRIES[name], Brightness()
    image = painted(50, 120, 20, 62, 6)
    found, plain = detector(geometry).predict_all(
        [InputSample("dot", image), InputSample("good", painted(50, 120, 0, 0, 0))], batch_size=4
    )
    assert found.map_HW.shape == (50, 120)
    assert np.abs(np.subtract(place_of(found.map_HW), (23, 65))).max() <= 2
    assert found.score > plain.score + 1
    assert ("looked at in the middle only, by data.aspect crop" in found.notes) == (name == "crop")

    scored = next(
        evaluate_classes(
            model,
            shards,
            "test",
            SETTINGS,
            device=CPU,
            workers=0,
            mask_resize="area",
            geometry=geometry,
            progress=False,
        )
    )
    scores = dict(zip(scored.defects, scored.image_scores, strict=True))
    assert scores["dot"] == pytest.approx(found.score, abs=1e-5)
    assert scores["good"] == pytest.approx(plain.score, abs=1e-5)
    assert scored.result.metrics["P-AUROC"] > 0.99
    assert scored.result.metrics["AUPRO"] > 0.99

    (ref,) = [ref for ref in shards.classes("test")["raw/part"] if ref.entry.anomalous]
    picture = sample_picture(model, shards, ref, SETTINGS, CPU, geometry=geometry)
    assert picture.score == pytest.approx(found.score, abs=1e-5)
    for drawn_HW in (picture.map_HW, picture.mask_HW, picture.images[0][1].mean(axis=2)):
        assert drawn_HW.shape == (50, 120)
        assert np.abs(np.subtract(place_of(drawn_HW.astype(np.float32)), (23, 65))).max() <= 2


def test_eight_pixels_of_six_million_are_found_by_tiles_in_batches_of_bounded_size() -> None:
    image, normal = painted(2000, 3000, 1234, 2345, 8), painted(400, 600, 0, 0, 0)
    whole, tiled = detector(Geometry()), detector(Geometry(tiles=Tiles(128, 16)))
    lost = whole.predict(image)
    assert lost.notes == ("made 94 times smaller, which loses defects of a few pixels; tiles would not",)
    found, plain = tiled.predict_all([InputSample("a", image), InputSample("b", normal)], batch_size=5)
    assert found.map_HW.shape == (2000, 3000)
    assert np.abs(np.subtract(place_of(found.map_HW), (1238, 2349))).max() <= 4
    assert found.score - plain.score > 10 * (lost.score - whole.predict(normal).score)
    assert found.notes == plain.notes == ()
    assert tiled.engine.model.largest_batch == 5  # type: ignore[attr-defined]


def test_an_image_that_its_tag_turns_comes_back_upright(tmp_path) -> None:
    upright = painted(60, 40, 12, 30, 6)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: a quarter turn clockwise makes it upright
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "turned.png", exif=exif)
    for name in ("stretch", "letterbox", "tiles"):
        found = detector(GEOMETRIES[name]).predict(tmp_path / "turned.png")
        assert np.array_equal(found.map_HW, detector(GEOMETRIES[name]).predict(upright).map_HW)
        assert found.map_HW.shape == (60, 40)
        assert np.abs(np.subtract(place_of(found.map_HW), (15, 33))).max() <= 2


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_region_of_interest_follows_the_image_through_every_view(shards, name) -> None:
    """What lies outside of it counts nowhere, in prediction, evaluation and pictures alike."""
    geometry, model = GEOMETRIES[name], Brightness()
    corners = ((40, 0), (69, 0), (69, 49), (40, 49))  # columns 40 to 69; the spot lies in 62 to 67
    inside = Roi(size=(120, 50), areas=(Area(polygon=corners, weight=0.6),))
    beside = Roi(size=(120, 50), outside=1, areas=(Area(polygon=((60, 0), (75, 0), (75, 49), (60, 49)), weight=0),))
    everywhere = Roi(size=(120, 50), outside=1, areas=(Area(polygon=((0, 0), (1, 0), (1, 1))),))
    image = painted(50, 120, 20, 62, 6)
    plain = detector(geometry).predict(image)
    found = {}
    for roi in (inside, beside, everywhere):
        rois = {"raw": CATALOGUE.datasets["raw"].model_copy(update={"roi": {"part": roi}})}
        looking = Detector(ModelEngine(model, SETTINGS, CPU, "fp32", geometry), Catalogue(rois, CATALOGUE.classes))
        found[roi] = looking.predict(image, class_name="part")
    assert found[everywhere].score == pytest.approx(plain.score, abs=1e-6)
    looked_HW = found[everywhere].weights_HW > 0
    np.testing.assert_array_equal(found[everywhere].map_HW[looked_HW], plain.map_HW[looked_HW])
    assert looked_HW.all() == (name != "crop")
    assert found[inside].score == pytest.approx(plain.score * 0.6, rel=0.02)
    assert found[beside].score < plain.score / 2
    seen_HW = np.zeros((50, 120), dtype=bool)
    seen_HW[:, 40:70] = True
    np.testing.assert_array_equal(found[inside].weights_HW, seen_HW * np.float32(0.6))
    np.testing.assert_allclose(found[inside].map_HW, np.where(seen_HW, plain.map_HW * 0.6, 0), rtol=1e-6)

    for roi in (inside, beside):
        regions = shards.with_rois(Rois({"raw/part": roi}))
        classes = evaluate_classes(
            model,
            regions,
            "test",
            SETTINGS,
            device=CPU,
            workers=0,
            mask_resize="area",
            geometry=geometry,
            progress=False,
        )
        scored = next(classes)
        assert scored.outside == (roi is beside)  # all that is marked
        if roi is inside:
            assert dict(zip(scored.defects, scored.image_scores, strict=True))["dot"] == pytest.approx(found[roi].score)
            assert scored.result.metrics["P-AUROC"] > 0.99
        (ref,) = [ref for ref in regions.classes("test")["raw/part"] if ref.entry.anomalous]
        picture = sample_picture(model, regions, ref, SETTINGS, CPU, geometry=geometry)
        assert picture.score == pytest.approx(found[roi].score, abs=1e-5)
        np.testing.assert_array_equal(np.isnan(picture.map_HW), found[roi].weights_HW == 0)


def test_a_letterboxs_padding_takes_no_part_in_the_score() -> None:
    dark = np.zeros((16, 64, 3), np.uint8)  # padding is brighter
    (square,) = detector(Geometry()).predict_all([InputSample("a", dark)])
    (boxed,) = detector(Geometry("letterbox")).predict_all([InputSample("a", dark)])
    assert boxed.score == pytest.approx(square.score, abs=0.01)


def test_what_tiles_see_alike_is_blended_without_a_seam() -> None:
    ramp = np.linspace(0, 255, 100)[None, :, None] * np.ones((40, 1, 3))
    found = detector(Geometry(tiles=Tiles(SIZE, 12))).predict(ramp.astype(np.uint8))
    steps = np.diff(found.map_HW[20])
    assert steps.min() > -1e-4
    assert steps.max() < 0.1
