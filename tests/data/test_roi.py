"""Regions of interest: how they are drawn, read, laid over images, and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from disk_sets import make_mvtec
from PIL import Image, ImageDraw

from unimmad.checkpoint.trained_on import TrainedOn, read_trained_on
from unimmad.data.index import DatasetEntry, Modality, load_index, rois_of, with_rois
from unimmad.data.layouts.find import find_set
from unimmad.data.look import look_at
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.roi import Area, Roi, Rois, given_rois, read_roi, rois_beside
from unimmad.data.views import whole
from unimmad.data.writing.shards import write_shards

LEFT = Roi(size=(80, 40), areas=(Area(polygon=((0, 0), (39, 0), (39, 39), (0, 39))),))


def weights(roi, size=16, stored=(40, 80), kinds=("rgb",), images=None):
    images = torch.zeros(len(kinds), 3, size, size) if images is None else images
    view = whole(stored, size)
    found = look_at(roi, view, lambda: images, kinds, stored, "part.png")
    return None if found is None else found.of_view(view).numpy()


def png(path, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return path


def test_polygons_and_pngs_weigh_what_they_say():
    assert weights(None) is None
    found = weights(LEFT)
    assert (found.dtype, found.shape) == (np.float32, (16, 16))
    assert (found[:, :8] == 1).all()
    assert (found[:, 8:] == 0).all()
    # The last area counts; what is outside of all has its own weight, and the least weight is not nothing.
    square = ((20, 10), (59, 10), (59, 29), (20, 29))
    layered = Roi(size=(80, 40), outside=0.2, areas=(*LEFT.areas, Area(polygon=square, weight=1e-4)))
    found = weights(layered)
    assert found[0, [0, 15]] == pytest.approx([1, 0.2])
    assert 0 < found[8, 8] < 0.01


def test_a_png_is_the_same_region_as_its_polygon(tmp_path):
    canvas = Image.new("L", (80, 40))
    ImageDraw.Draw(canvas).polygon(LEFT.areas[0].polygon, fill=255)
    canvas.save(tmp_path / "roi.png")
    drawn = read_roi(tmp_path / "roi.png")
    np.testing.assert_array_equal(weights(drawn), weights(LEFT))
    assert Roi.model_validate_json(drawn.model_dump_json()) == drawn
    assert drawn.digest == read_roi(tmp_path / "roi.png").digest != LEFT.digest
    assert "50% looked at" in drawn.in_words()
    assert drawn.digest in drawn.in_words()


def test_a_region_thinner_than_a_pixel_of_the_model_is_not_lost():
    line = Roi(size=(800, 400), areas=(Area(polygon=((0, 3), (799, 3), (799, 3))),))
    assert (weights(line, stored=(400, 800)) > 0).any()


def test_an_image_of_another_shape_is_refused_and_of_another_size_not():
    np.testing.assert_array_equal(weights(LEFT, stored=(400, 800)), weights(LEFT))
    with pytest.raises(ValueError, match=r"part.png is 80 x 80 pixels.*another shape.*2 instead of 1"):
        weights(LEFT, stored=(80, 80))
    weights(Roi(foreground=True), stored=(3, 500))


def test_the_rule_finds_the_object_of_each_image():
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:64, :64]
    disc, ring = np.hypot(rows - 30, columns - 20) < 12, np.hypot(rows - 30, columns - 20) < 5
    rgb = torch.from_numpy(rng.normal(scale=0.02, size=(3, 64, 64)).astype(np.float32)) - 2
    rgb[:, torch.from_numpy(disc)] += 1.5
    rgb[:, torch.from_numpy(ring)] -= 1.5  # a hole that looks like the background
    rgb[1, 60, 60] += 2  # a speck
    found = weights(Roi(foreground=True), 64, images=rgb[None]) > 0
    assert found[disc].all()
    assert not found[np.hypot(rows - 30, columns - 20) > 16].any()
    # Depth is told by where it was measured; both modalities' objects are joined.
    depth = torch.zeros(3, 64, 64)
    depth[:, 40:50, 40:60] = torch.randn(10, 20)
    joined = weights(Roi(foreground=True), 64, kinds=("rgb", "depth"), images=torch.stack([rgb, depth])) > 0
    assert joined[disc].all()
    assert joined[40:50, 40:60].all()
    assert not joined[:20, 45:].any()
    # Together with what is drawn: where both say so. Nothing to go by: everything.
    both = Roi(size=(64, 64), areas=(Area(polygon=((0, 0), (20, 0), (20, 63), (0, 63))),), foreground=True)
    np.testing.assert_array_equal(weights(both, 64, (64, 64), images=rgb[None]) > 0, found & (columns <= 20))
    assert (weights(Roi(foreground=True), 64, images=torch.zeros(1, 3, 64, 64)) == 1).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"foreground": False}, "it says nothing"),
        ({"areas": [{"polygon": [[0, 0], [1, 1], [1, 0]]}]}, "areas need the size"),
        ({"size": [9, 9], "areas": [{"polygon": [[0, 0], [1, 1]]}]}, "areas.0.polygon"),
        ({"size": [9, 9], "areas": [{"polygon": [[20, 20], [30, 20], [30, 30]]}]}, "nothing to look at"),
        ({"size": [9, 9], "areas": [{"polygon": [[0, 0], [1, 1], [1, 0]], "weight": 2}]}, "less than or equal to 1"),
        ({"size": [9, 90000], "areas": [{"polygon": [[0, 0], [1, 1], [1, 0]]}]}, "wanted 1 to 4096 pixels"),
        ({"polygons": []}, r"polygons: Extra inputs .*; write it as .*areas"),
        ({"png": "AAAA"}, "does not open as PNG"),
    ],
)
def test_json_that_says_nothing_sensible_names_its_file(tmp_path, content, message):
    (tmp_path / "roi.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"roi\.json: .*{message}"):
        read_roi(tmp_path / "roi.json")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4)), "nothing to look at"),
        (np.eye(4), "levels 0 and 1"),
        (np.random.default_rng(0).integers(0, 255, (4, 4, 3)), "has colours"),
    ],
)
def test_pngs_that_mean_nothing_name_their_file(tmp_path, array, message):
    with pytest.raises(ValueError, match=rf"roi\.png: .*{message}"):
        read_roi(png(tmp_path / "roi.png", array))


def test_where_files_are_looked_for(tmp_path):
    classes = ["parts/nut", "parts/bolt", "food/cake", "food/bun", "food/pie"]
    half = np.zeros((4, 8))
    half[:, :4] = 255
    for place in ("parts/nut", "bolt", "food"):
        (tmp_path / place).mkdir(parents=True)
    png(tmp_path / "parts/nut/roi.png", half)
    png(tmp_path / "bolt/roi.png", half)
    png(tmp_path / "food/cake.png", half)
    (tmp_path / "bun.json").write_text('{"foreground": true}')
    given = given_rois(tmp_path, classes)
    assert sorted(given.of_classes) == ["food/bun", "food/cake", "parts/bolt", "parts/nut"]
    assert given.of("food/pie") is given.of(None) is None
    file = tmp_path / "bun.json"
    assert given_rois(file, classes).of(None) == given_rois(file, classes).of("food/pie") == Roi(foreground=True)
    assert given_rois(type(file)("none"), classes) == Rois()
    assert list(rois_beside(tmp_path, ["bolt", "bun"])) == ["bolt"]
    with pytest.raises(ValueError, match=r"no region of interest of any class; wanted .* one of x"):
        given_rois(tmp_path, ["a/x"])
    png(tmp_path / "bun.png", half)
    with pytest.raises(ValueError, match=r"bun\.png and bun\.json both say where to look"):
        given_rois(tmp_path, classes)
    with pytest.raises(ValueError, match=r"gone\.png: can't be read"):
        given_rois(tmp_path / "gone.png", classes)


def test_shards_take_the_regions_beside_their_classes(tmp_path):
    root = make_mvtec(tmp_path / "parts")
    classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    before = find_set(root).source
    (root / classes[0] / "roi.json").write_text('{"foreground": true}')
    source = find_set(root).source
    assert source.entry.roi == {classes[0]: Roi(foreground=True)}
    index = write_shards([source], tmp_path / "shards", progress=False)
    assert load_index(tmp_path / "shards") == index
    assert [sample.key for sample in before.samples] == [sample.key for sample in source.samples]
    shards = ShardSet.open([tmp_path / "shards"])
    train = shards.classes("train")[f"parts/{classes[0]}"][0]
    assert shards.read(train, 16).weights_HW is not None
    assert shards.read(train, 16, with_mask=False).weights_HW is None
    # A checkpoint keeps them, and another region is no reason not to continue from it.
    trained_on = TrainedOn.of(index.datasets, index.classes("train"))
    state = {"trained_on": json.loads(json.dumps(trained_on.entry()))}
    assert read_trained_on(state, "state.json").datasets == index.datasets
    assert not trained_on.difference(TrainedOn.of({"parts": before.entry}, index.classes("train")))


def test_indexes_hold_regions_and_say_nothing_where_there_is_none():
    entry = DatasetEntry(field="industry", modalities=(Modality(name="rgb", slot=0, kind="rgb"),))
    assert "roi" not in entry.model_dump(mode="json")
    changed = with_rois({"a": entry, "b": entry}, Rois({"a/x": LEFT}), ["a/x", "a/y", "b/x"])
    again = DatasetEntry.model_validate_json(changed["a"].model_dump_json())
    assert again == changed["a"]
    assert rois_of({"a": again, "b": changed["b"]}) == Rois({"a/x": LEFT})
