"""Each modality's share of a score and part of a map, and modalities that do not lie over each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unimmad.checkpoint.thresholds import SensorThreshold
from unimmad.data.decode import decode_image
from unimmad.data.edges import Overlap, usual_gain
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.views import Geometry, Tiles
from unimmad.evaluation.sensor_shares import joined_shares
from unimmad.inference.deciding import misaligned
from unimmad.inference.detector import Detector
from unimmad.inference.inputs import InputSample
from unimmad.inference.output import PredictionFolder
from unimmad.model.anomaly_map import (
    anomaly_maps,
    image_scores,
    part_scores,
    parts_of_squares,
    region_score,
    token_squares,
)


@pytest.fixture(scope="module")
def detector(checkpoint_folder) -> Detector:
    return Detector.from_checkpoint(checkpoint_folder, device="cpu")


@pytest.fixture(scope="module")
def cookie(calibration_shards) -> dict[str, np.ndarray]:
    shards = ShardSet.open([calibration_shards])
    ref = shards.classes("test")["solids/cookie"][0]
    return {
        name: decode_image(shards.member_bytes(ref, member), Path(member.name).suffix, name)
        for name, member in ref.entry.images.items()
    }


def test_parts_add_up_to_maps_and_scores_whatever_the_rule() -> None:
    torch.manual_seed(0)
    distances, samples_T = [torch.rand(3, 4, 4), torch.rand(3, 2, 2)], torch.tensor([0, 0, 1])
    maps_BHW = anomaly_maps(distances, samples_T, 2, 16)
    parts_THW = parts_of_squares(token_squares(distances, 16), samples_T, 2)
    torch.testing.assert_close(parts_THW[:2].sum(0), maps_BHW[0])
    torch.testing.assert_close(parts_THW[2], maps_BHW[1])
    look_HW = torch.rand(16, 16) > 0.4
    for pool in (1, 3):
        found_M = part_scores(maps_BHW[0], parts_THW[:2], None, 0.05, pool)
        torch.testing.assert_close(found_M.sum(), image_scores(maps_BHW[:1], 0.05, pool)[0])
        found_M = part_scores(maps_BHW[0], parts_THW[:2], look_HW, 0.05, pool)
        torch.testing.assert_close(found_M.sum(), region_score(maps_BHW[0], look_HW, 0.05, pool))
    assert parts_of_squares(torch.zeros(1, 2, 2), torch.zeros(1, dtype=torch.long), 1).sum() == 0


def test_predictions_say_what_each_modality_has_to_do_with_them(detector, cookie, tmp_path) -> None:
    found = next(detector.predict_all([InputSample("a", cookie)], with_pictures=True))
    assert found.shares is not None
    assert list(found.shares) == ["rgb", "depth"]
    assert sum(found.shares.values()) == pytest.approx(1, abs=1e-9)
    assert min(found.shares.values()) > 0
    np.testing.assert_allclose(sum(found.modality_maps.values()), found.map_HW, rtol=1e-4, atol=1e-6)
    alone = detector.predict({"rgb": cookie["rgb"]})
    assert alone.shares == {"rgb": 1.0}
    assert not alone.modality_maps
    with PredictionFolder(tmp_path, {"a": "f"}) as folder:
        folder.add(found)
    with Image.open(tmp_path / "pictures" / "a.png") as picture, Image.open(_without_parts(found, tmp_path)) as other:
        assert picture.width > 1.4 * other.width, "two more panels"


def _without_parts(found, folder: Path) -> Path:
    with PredictionFolder(folder / "plain", {"a": "f"}) as plain:
        plain.add(replace(found, modality_maps={}))
    return folder / "plain" / "pictures" / "a.png"


def test_shares_of_tiles_are_those_of_the_tile_that_gives_the_score(detector, cookie) -> None:
    size = (128, 128)
    tiled, with_whole = (Geometry("stretch", Tiles(64, 0, whole)).views(size, 64) for whole in (False, True))
    scores, shares = [1.0, 3.0, 1.0, 1.0], [(0.5, 0.5), (0.9, 0.1), (0.5, 0.5), (0.5, 0.5)]
    assert joined_shares(scores, shares, tiled, size) == (0.9, 0.1)
    whole_at = [view.source.height for view in with_whole].index(128)
    scores.insert(whole_at, 1.0)
    shares.insert(whole_at, (0.1, 0.9))
    assert joined_shares(scores, shares, with_whole, size) == pytest.approx((0.7, 0.3))
    assert joined_shares([1.0], [None], tiled[:1], size) is None
    engine = detector.engine
    before = engine.geometry
    try:
        engine.geometry = Geometry("stretch", Tiles(64, 16, True))
        found = detector.predict(cookie)
    finally:
        engine.geometry = before
    assert found.shares is not None
    assert sum(found.shares.values()) == pytest.approx(1)
    assert not found.modality_maps


def test_a_modality_that_is_shifted_is_told_unless_calibration_had_it_so(detector, cookie) -> None:
    usual = SensorThreshold(value=1, images=5, fpr_bound=0.2, modalities=("rgb", "depth"))
    in_place = detector.predict(cookie)
    assert in_place.overlaps["depth"].gain < 0.1
    assert not in_place.misaligned
    for pixels in (8, 12):
        shifted = cookie | {"depth": np.roll(cookie["depth"], pixels, axis=1)}
        overlaps = detector.predict(shifted).overlaps
        assert overlaps["depth"].right == pytest.approx(-pixels / 128, abs=0.02)
        known = usual.model_copy(update={"edge_gain": in_place.overlaps["depth"].gain})
        assert misaligned(overlaps, known) == ("depth",)
        assert misaligned(overlaps, usual.model_copy(update={"edge_gain": overlaps["depth"].gain})) == ()


def test_sensors_without_edges_in_common_are_not_judged_by_what_is_usual() -> None:
    apart = Overlap(in_place=0.05, best=0.25, margin=0.01, down=0.1, right=0.0)
    assert usual_gain([apart]) is None
    assert usual_gain([]) is None
    assert not apart.is_misaligned(None)
    assert usual_gain(
        [apart._replace(in_place=0.4, best=0.42), apart._replace(in_place=0.3, down=0.0)]
    ) == pytest.approx(0.02)


def test_without_calibration_a_clear_shift_is_told_in_the_notes(detector) -> None:
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 200, (16, 16), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    depth = 1000 + 50 * np.roll(blocks, 10, axis=0).astype(np.uint16)
    found = detector.predict({"rgb": np.stack([blocks] * 3, axis=2), "depth": depth})
    assert found.misaligned == ("depth",)
    (note,) = [note for note in found.notes if "perhaps misaligned" in note]
    assert note.startswith("depth and rgb are perhaps misaligned: edges fit best where depth is moved by -7.8%")
    assert (
        detector.predict({"rgb": np.stack([blocks] * 3, axis=2), "depth": np.roll(depth, -10, axis=0)}).misaligned == ()
    )
