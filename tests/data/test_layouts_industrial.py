"""The industrial benchmarks beside the paper's nine, from a small copy of their folders to shards and back."""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data.disk_sets import SIZE, mask, rgb, save
from data.every_layout import choices, make_copy
from data.industrial_sets import (
    POINT,
    make_btad,
    make_kolektor_sdd2,
    make_mvtec_ad_2,
    make_mvtec_loco,
    make_real_iad,
    make_real_iad_d3,
    make_real_iad_d3_tables,
    write_cloud,
)

from unimmad.data.decode import decode_image, decode_mask_pixels
from unimmad.data.layouts import LAYOUTS, find_set
from unimmad.data.layouts.benchmarks.point_cloud import read_cloud_depth
from unimmad.data.layouts.benchmarks.positions import read_height
from unimmad.data.layouts.find import FoundSet
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import parse_modality
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.writing.shards import write_shards

RGB = {"rgb": "rgb"}
Parts = dict[tuple[str, str], int]
CASES: dict[str, tuple[Parts, dict[str, str], list[str]]] = {
    "real_iad": (
        {("train", "good"): 2, ("test", "good"): 2, ("test", "HS"): 1},
        RGB,
        ["29 of 30 classes are not there"],
    ),
    "real_iad_d3": (
        {("train", "good"): 2, ("test", "good"): 2, ("test", "scratch"): 2},
        {"rgb": "rgb", "pseudo_3d": "rgb", "depth": "depth"},
        [],
    ),
    "mvtec_ad_2": (
        {("train", "good"): 2, ("calibration", "good"): 1, ("test", "good"): 1, ("test", "bad"): 1},
        RGB,
        ["test_private and test_private_mixed left out"],
    ),
    "mvtec_loco": (
        {
            ("train", "good"): 1,
            ("calibration", "good"): 1,
            ("test", "good"): 1,
            ("test", "logical_anomalies"): 1,
            ("test", "structural_anomalies"): 1,
        },
        RGB,
        [],
    ),
    "btad": ({("train", "good"): 3, ("test", "good"): 3, ("test", "anomaly"): 3}, RGB, []),
    "mpdd": ({("train", "good"): 9, ("test", "good"): 3, ("test", "bent"): 6}, RGB, ["3 of 6 classes are not there"]),
    "kolektor_sdd2": (
        {("train", "good"): 2, ("test", "good"): 1, ("test", "anomaly"): 1},
        RGB,
        ["1 images with defects left out"],
    ),
}
"""Samples by split and defect, kinds of the modalities, and what is said."""


def array(file: SourceFile) -> np.ndarray:
    return decode_image(file.read(), file.suffix, file.name)


def marked(sample: SourceSample) -> np.ndarray:
    assert sample.mask is not None
    return decode_mask_pixels(sample.mask.read(), sample.mask.suffix, sample.mask.name)


def first(found: FoundSet, split: str, defect: str = "good") -> SourceSample:
    return next(s for s in found.source.samples if (s.split, s.defect) == (split, defect))


@pytest.mark.parametrize("name", CASES)
def test_recognised_written_and_read_back(name: str, tmp_path: Path) -> None:
    parts, kinds, said = CASES[name]
    found = find_set(make_copy(name, tmp_path), modalities=choices(name), calibration_fraction=None)
    source, info = found.source, LAYOUTS[name].info
    assert (source.name, source.entry.field) == (name, "industry")
    assert {modality.name: modality.kind for modality in source.entry.modalities} == kinds
    for text in (f"read as {info.title}", *said):
        assert any(text in notice for notice in found.notices), found.notices
    index = write_shards([source], tmp_path / "shards", progress=False)
    assert Counter((sample.split, sample.defect) for sample in index.samples) == parts
    assert {sample.class_name for sample in index.samples} <= set(info.classes)
    shards = ShardSet.open([tmp_path / "shards"])
    for split in ("train", "test", "calibration"):
        for ref in (ref for refs in shards.classes(split).values() for ref in refs):
            sample = shards.read(ref, 16)
            assert set(sample.modalities) == set(kinds)
            assert sample.mask_HW is not None
            assert sample.mask_HW.any() == sample.anomalous


def test_all_masks_of_an_image_are_joined_whatever_their_values(tmp_path: Path) -> None:
    found = find_set(make_mvtec_loco(tmp_path))
    np.testing.assert_array_equal(marked(first(found, "test", "logical_anomalies")), (mask() > 0) | (POINT > 0))
    np.testing.assert_array_equal(marked(first(found, "test", "structural_anomalies")), POINT > 0)


def test_bmp_keeps_its_pixels(tmp_path: Path) -> None:
    found = find_set(make_btad(tmp_path))
    for sample in (sample for sample in found.source.samples if sample.split == "train"):
        np.testing.assert_array_equal(array(sample.images["rgb"]), rgb(0))


def test_a_view_without_its_objects_defect_is_normal(tmp_path: Path) -> None:
    root = make_real_iad(tmp_path / "a")
    hidden = [s for s in find_set(root).source.samples if s.split == "test" and "_NG_HS_C2" in s.images["rgb"].name]
    assert [(sample.defect, sample.mask) for sample in hidden] == [("good", None)]
    tables = root / "realiad_jsons"
    (tables / "realiad_jsons").mkdir()
    (tables / "usb.json").rename(tables / "realiad_jsons" / "usb.json")
    shutil.copytree(root / "realiad_1024", root / "realiad_raw")
    found = find_set(root)
    assert len(found.source.samples) == 5
    assert any("realiad_1024 is read, realiad_raw left out" in notice for notice in found.notices)
    assert all("realiad_1024" in sample.images["rgb"].name for sample in found.source.samples)


def test_depth_has_the_unit_that_was_said_and_the_size_of_rgb(tmp_path: Path) -> None:
    root = make_real_iad_d3(tmp_path)
    found = find_set(root, modalities=[parse_modality("depth=depth:0.001")])
    depth = array(first(found, "train").images["depth"])
    scale = next(modality.scale for modality in found.source.entry.modalities if modality.name == "depth")
    assert depth.shape == SIZE
    assert 0.45 < np.nanmin(depth) * scale < np.nanmax(depth) * scale < 0.65
    assert "_L05_" in first(found, "train").images["rgb"].name
    assert array(first(found, "train").images["pseudo_3d"]).shape == (*SIZE, 3)
    without = find_set(root, modalities=[parse_modality("depth=skip")])
    assert [modality.name for modality in without.source.entry.modalities] == ["rgb", "pseudo_3d"]
    for number, path in enumerate(sorted(root.rglob("*.tiff"))):
        path.rename(path.with_name(f"cloud{number}.tiff"))
    found = find_set(root, modalities=[parse_modality("depth=depth:0.001")])
    assert any("paired by their order" in notice for notice in found.notices)
    next(root.rglob("*.tiff")).unlink()
    with pytest.raises(ValueError, match=r"xyz: 1 files, but rgb has 2 samples"):
        find_set(root, modalities=[parse_modality("depth=depth:0.001")])


def test_real_iad_d3_as_it_is_downloaded_and_its_point_clouds(tmp_path: Path) -> None:
    root = make_real_iad_d3_tables(tmp_path / "d3")
    found = find_set(root, modalities=[parse_modality("depth=depth:mm")])
    parts = Counter((sample.class_name, sample.split, sample.defect) for sample in found.source.samples)
    expected = (("train", "good"), ("calibration", "good"), ("test", "good"), ("test", "DK"))
    assert parts == {("knob-cap", split, defect): 1 for split, defect in expected}
    assert any("1 validation images with defects left out" in notice for notice in found.notices)
    assert any("points without rows, of 1 of 4 samples" in notice for notice in found.notices)
    positions, cloud, scattered = (
        array(first(found, split, defect).images["depth"])
        for split, defect in (("train", "good"), ("test", "good"), ("test", "DK"))
    )
    np.testing.assert_array_equal(positions, cloud)
    assert not any("without a mask" in notice for notice in found.notices)
    assert positions.shape == scattered.shape == SIZE
    assert marked(first(found, "test", "DK")).any()
    low, high = np.nanmin(positions), np.nanmax(positions)
    assert low - 3 <= np.nanmin(scattered) <= np.nanmax(scattered) <= high + 3
    measured = np.isfinite(positions)
    for path in root.rglob("*XYZ*"):
        changed = decode_image(path.read_bytes(), ".tiff", "", planes=True)
        changed[..., :2] = 1e30  # what stands beside the height does not count
        save(path, changed)
    np.testing.assert_array_equal(array(first(found, "train").images["depth"])[measured], positions[measured])
    for path in root.rglob("*XYZ*"):
        path.unlink()
    assert "depth" not in first(find_set(root, modalities=[parse_modality("depth=skip")]), "train").images


def test_real_iad_d3s_defects_without_a_mask_are_said(tmp_path: Path) -> None:
    root = make_real_iad_d3_tables(tmp_path / "d3")
    table = next(root.rglob("*.json"))
    table.write_text(table.read_text().replace('"mask_path"', '"other"'))
    found = find_set(root, modalities=[parse_modality("depth=depth:mm")])
    assert any("knob_cap.json: 1 test images with defects have no mask_path" in notice for notice in found.notices)


def test_point_clouds_suffixes_may_be_in_capitals(tmp_path: Path) -> None:
    root = make_real_iad_d3(tmp_path)
    for path in root.rglob("xyz/*.tiff"):
        write_cloud(path.with_suffix(".PCD"), 1000 * np.random.default_rng(0).random((20, 40, 3)), organised=False)
        path.unlink()
    found = find_set(root, modalities=[parse_modality("depth=depth:mm")])
    assert first(found, "train").images["depth"].name.endswith(".PCD")
    assert any("points without rows" in notice for notice in found.notices)


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
def test_a_point_cloud_seen_along_z(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "cloud.pcd"
    rows, columns = np.indices((20, 40))
    points = np.stack([columns * 0.5 - 7, rows * 0.5 + 3, 600 + columns + 0.25 * rows], axis=2)
    write_cloud(path, points, encoding, organised=False)
    depth = read_cloud_depth(path)
    assert depth.shape == (10, 20)  # four points a pixel
    means = points[..., 2].reshape(10, 2, 20, 2).mean(axis=(1, 3))
    assert np.abs(depth - means).max() <= 1.25
    points[3, 4] = np.nan
    points[5, 6] = 0
    write_cloud(path, points, encoding)
    depth = read_cloud_depth(path)
    points[[3, 5], [4, 6], 2] = np.nan
    np.testing.assert_allclose(depth, points[..., 2].astype(np.float32))


@pytest.mark.parametrize("organised", [True, False])
def test_a_cloud_without_a_measured_point_is_refused(organised: bool, tmp_path: Path) -> None:
    write_cloud(tmp_path / "cloud.pcd", np.full((20, 40, 3), np.nan), organised=organised)
    with pytest.raises(ValueError, match=r"cloud\.pcd: none of its points was measured"):
        read_cloud_depth(tmp_path / "cloud.pcd")
    with pytest.raises(ValueError, match=r"map\.npy: none of its points was measured"):
        read_height(save(tmp_path / "map.npy", np.zeros((20, 40, 3), np.float32)))


def test_a_stray_point_does_not_empty_the_depth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "cloud.pcd"
    rows, columns = np.indices((50, 80)) * 0.5
    points = np.stack([columns, rows, 600 + columns], axis=2)
    write_cloud(path, points, organised=False)
    usual = read_cloud_depth(path)
    points[3, 4, :2] = 1000
    write_cloud(path, points, organised=False)
    depth = read_cloud_depth(path)
    assert depth.shape == usual.shape
    assert np.isfinite(depth).all()
    assert not caplog.messages
    points[:5, :5, :2] = 1000  # too many to be strays
    write_cloud(path, points, organised=False)
    read_cloud_depth(path)
    assert "of its depth is empty" in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"DATA binary", b"DATA binary_compressed", "stored as binary_compressed; save it as ascii or binary"),
        (b"FIELDS x rgb", b"FIELDS u rgb", "not that of a point cloud"),
        (b"FIELDS x rgb", b"FIELDS x x", "not that of a point cloud"),
        (b"TYPE F U", b"TYPE F Q", "not that of a point cloud"),
        (b"COUNT 1 2", b"COUNT 1 -2", "not that of a point cloud"),
        (b"POINTS 800", b"POINTS 900", "not that of a point cloud"),
        (b"WIDTH 40\nHEIGHT 20", b"WIDTH 40000\nHEIGHT 20000", "not that of a point cloud"),
        (b"WIDTH 40\nHEIGHT 20\n", b"WIDTH 400000000\nHEIGHT 2\n", "not that of a point cloud"),
        (b"COUNT 1 2", b"COUNT 1 3", "ends before its last point"),
        (b"DATA binary", b"DATA ascii", r"cloud\.pcd: .*; replace or remove it"),
    ],
)
def test_bad_point_clouds(old: bytes, new: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "cloud.pcd"
    write_cloud(path, np.random.default_rng(0).random((20, 40, 3)))
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_cloud_depth(path)


def _table(root: Path, **changes: object) -> None:
    path = root / "realiad_jsons" / "usb.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _d3_table(root: Path, before: str) -> None:
    path = root / "realiad_d3_jsons" / "knob_cap.json"
    path.write_text(path.read_text().replace('"OK/', f'"{before}OK/'))


BAD: list[tuple[Callable[[Path], Path], str, Callable[[Path], object], str]] = [
    (make_real_iad, "real_iad", lambda root: shutil.rmtree(root / "realiad_1024"), "has none of realiad_1024, "),
    (make_real_iad, "real_iad", lambda root: (root / "realiad_jsons/usb.json").unlink(), r"has no CLASS\.json"),
    (make_real_iad, "real_iad", lambda root: _table(root, test=None), r"usb\.json: .*is it a table of Real-IAD"),
    (make_real_iad, "real_iad", lambda root: _table(root, meta={"normal_class": "OK", "prefix": "../"}), "leads out"),
    (make_real_iad, "real_iad", lambda root: next(root.rglob("*NG*.png")).unlink(), r"test, record 1: .*not exist"),
    (make_real_iad_d3, "real_iad_d3", lambda root: None, r"S000\.tiff: .*does not say the unit"),
    (make_real_iad_d3, "real_iad_d3", lambda root: next(root.rglob("*L05*")).unlink(), "has 0 files .*L05"),
    (make_real_iad_d3_tables, "real_iad_d3", lambda root: _d3_table(root, "../"), r"train, record 0: .*leads out"),
    (make_real_iad_d3_tables, "real_iad_d3", lambda root: _d3_table(root, "gone/"), r"train, record 0: .*not exist"),
    (
        make_real_iad_d3_tables,
        "real_iad_d3",
        lambda root: shutil.rmtree(root / "realiad_d3_raw"),
        "has no folder of a class",
    ),
    (
        make_mvtec_ad_2,
        "mvtec_ad_2",
        lambda root: next(root.rglob("*_mask.png")).unlink(),
        "overexposed.png has no mask",
    ),
    (make_mvtec_loco, "mvtec_loco", lambda root: shutil.rmtree(root / "pushpins/ground_truth"), "000.png has no mask"),
    (make_btad, "btad", lambda root: next(root.rglob("03/ground_truth/ko/*")).unlink(), r"0001\.bmp has no mask"),
    (make_btad, "btad", lambda root: save(root / "02/test/ko/0001.bmp", rgb(0)), "name one sample twice"),
    (make_kolektor_sdd2, "kolektor_sdd2", lambda root: (root / "test/20001_GT.png").unlink(), "20001.png has no mask"),
    (make_kolektor_sdd2, "kolektor_sdd2", lambda root: shutil.rmtree(root / "test"), "test is missing"),
]


@pytest.mark.parametrize(("make", "layout", "spoil", "message"), BAD)
def test_bad_copies(
    make: Callable[[Path], Path], layout: str, spoil: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    root = make(tmp_path / "copy")
    spoil(root)
    with pytest.raises(ValueError, match=message):
        find_set(root, layout=layout)


def test_a_broken_bmp_is_named(tmp_path: Path) -> None:
    make_btad(tmp_path)
    (tmp_path / "01/train/ok/0000.bmp").write_bytes(b"BM nothing")
    with pytest.raises(ValueError, match=r"0000\.bmp: does not open as BMP"):
        write_shards([find_set(tmp_path).source], tmp_path / "shards", progress=False)
