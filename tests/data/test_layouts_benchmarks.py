"""Each benchmark's layout, from a small copy of its published folders to shards and back."""

import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from disk_sets import (
    SIZE,
    make_bmad,
    make_bmad_by_kind,
    make_eyecandies,
    make_hyper_kvasir,
    make_mulsen,
    make_mvtec,
    make_mvtec_3d,
    make_visa,
    mask,
    rgb,
    save,
)

from unimmad.data.decode import decode_image, decode_mask_pixels
from unimmad.data.index import Index, load_index
from unimmad.data.layouts import LAYOUTS, find_set, layout_table
from unimmad.data.layouts.benchmarks.mvtec_ad import CLASSES as MVTEC_CLASSES
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import parse_modality
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.writing.shards import write_shards


def array(file: SourceFile) -> np.ndarray:
    return decode_image(file.read(), file.suffix, file.name)


def marked(sample: SourceSample) -> np.ndarray:
    assert sample.mask is not None
    return decode_mask_pixels(sample.mask.read(), sample.mask.suffix, sample.mask.name)


def one(samples: tuple[SourceSample, ...], split: str, defect: str = "good") -> SourceSample:
    (found,) = (sample for sample in samples if (sample.split, sample.defect) == (split, defect))
    return found


CASES: dict[str, tuple[Callable[[Path], Path], str, dict[tuple[str, str], int], list[tuple[str, str, int]]]] = {
    "visa": (
        make_visa,
        "pictures",
        {("train", "good"): 4, ("test", "good"): 2, ("test", "anomaly"): 2},
        [("rgb", "rgb", 0)],
    ),
    "mvtec_3d": (
        make_mvtec_3d,
        "pictures",
        {("train", "good"): 1, ("calibration", "good"): 1, ("test", "good"): 1, ("test", "hole"): 1},
        [("rgb", "rgb", 0), ("depth", "depth", 1)],
    ),
    "eyecandies": (
        make_eyecandies,
        "pictures",
        {("train", "good"): 2, ("calibration", "good"): 1, ("test", "good"): 1, ("test", "dents"): 1},
        [("rgb", "rgb", 0), ("depth", "depth", 1)],
    ),
    "mulsen_ad": (
        make_mulsen,
        "pictures",
        {("train", "good"): 1, ("test", "good"): 1, ("test", "crack"): 1, ("test", "hole"): 1},
        [("rgb", "rgb", 0), ("infrared", "gray", 1)],
    ),
    "brats": (
        lambda root: make_bmad(root, sequences=("t1", "t1ce")),
        "BraTS2021_slice",
        {("train", "good"): 2, ("calibration", "good"): 1, ("test", "good"): 1, ("test", "anomaly"): 1},
        [("flair", "gray", 0), ("t1", "gray", 1), ("t1ce", "gray", 2)],
    ),
    "liver_ct": (
        make_bmad_by_kind,
        "hist_DIY",
        {("train", "good"): 1, ("test", "good"): 1, ("test", "anomaly"): 1},
        [("ct", "gray", 0)],
    ),
    "retinal_oct": (
        lambda root: make_bmad(root, valid="val"),
        "RESC",
        {("train", "good"): 2, ("calibration", "good"): 1, ("test", "good"): 1, ("test", "anomaly"): 1},
        [("oct", "gray", 0)],
    ),
    "hyper_kvasir": (
        make_hyper_kvasir,
        "pictures",
        {("train", "good"): 17, ("test", "good"): 5, ("test", "polyp"): 2},
        [("rgb", "rgb", 0)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_recognised_and_written(name: str, tmp_path: Path) -> None:
    make, folder, parts, modalities = CASES[name]
    found = find_set(make(tmp_path / folder), calibration_fraction=None)
    source, info = found.source, LAYOUTS[name].info
    assert (source.name, source.entry.field) == (name, info.field)
    assert any(f"read as {info.title}" in notice for notice in found.notices)
    assert [(m.name, m.kind, m.slot) for m in source.entry.modalities] == modalities

    pickle.dumps(source)  # so that other processes can write it

    target = tmp_path / "shards"
    index = write_shards([source], target, progress=False)
    assert Counter((sample.split, sample.defect) for sample in index.samples) == parts
    assert {shard.name.split("-")[0] for shard in index.shards} == {split for split, _ in parts}
    assert {sample.class_name for sample in index.samples} <= set(info.classes)
    _check_read_back(index, target, [name for name, _, _ in modalities])


def _check_read_back(index: Index, target: Path, modalities: list[str]) -> None:
    assert load_index(target) == index
    shards = ShardSet.open([target])
    for split in ("train", "test", "calibration"):
        for refs in shards.classes(split).values():
            for ref in refs:
                sample = shards.read(ref, 16)
                assert list(sample.modalities) == modalities
                assert sample.images_MCHW.isfinite().all()
                assert sample.mask_HW is not None
                assert sample.mask_HW.any() == sample.anomalous


def test_139_classes_in_sixteen_benchmarks() -> None:
    classes = {name: layout.info.classes for name, layout in LAYOUTS.items() if layout.info.classes}
    assert {name: len(found) for name, found in classes.items()} == {
        "mvtec_ad": 15,
        "visa": 12,
        "mvtec_3d": 10,
        "eyecandies": 10,
        "mulsen_ad": 15,
        "brats": 1,
        "liver_ct": 1,
        "retinal_oct": 1,
        "hyper_kvasir": 1,
        "real_iad": 30,
        "real_iad_d3": 20,
        "mvtec_ad_2": 8,
        "mvtec_loco": 5,
        "btad": 3,
        "mpdd": 6,
        "kolektor_sdd2": 1,
    }
    assert len({(name, found) for name, all_ in classes.items() for found in all_}) == 139
    lines = layout_table().splitlines()
    assert lines[-1] == "139 classes in 16 benchmark datasets"
    assert [line.split()[0] for line in lines[1:-1]] == list(LAYOUTS)
    assert next(line for line in lines if line.startswith("mulsen_ad")).split()[1:4] == ["15", "rgb,", "infrared"]


def test_mvtec_ad_needs_half_of_its_classes(tmp_path: Path) -> None:
    for name in MVTEC_CLASSES[:7]:
        make_mvtec(tmp_path, name)
    assert find_set(tmp_path).source.name == tmp_path.name
    for part in ("train/good", "test/good"):
        save(make_mvtec(tmp_path, MVTEC_CLASSES[7]) / MVTEC_CLASSES[7] / part / "gray.png", mask())
    found = find_set(tmp_path, calibration_fraction=None)
    assert (found.source.name, found.source.entry.field) == ("mvtec_ad", "industry")
    assert {name for sample in found.source.samples for name in sample.images} == {"rgb"}
    assert {sample.split for sample in found.source.samples} == {"train", "test"}
    assert any("7 of 15 classes are not there" in notice for notice in found.notices)
    index = write_shards([found.source], tmp_path / "shards", progress=False)
    _check_read_back(index, tmp_path / "shards", ["rgb"])


def test_unknown_class(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bolt is not a class of MVTec-AD, which has bottle, "):
        find_set(make_mvtec(tmp_path), layout="mvtec_ad")


def test_mvtec_3d_without_depth_says_so(tmp_path: Path) -> None:
    for path in make_mvtec_3d(tmp_path).rglob("*.tiff"):
        path.unlink()
    found = find_set(tmp_path)
    assert [modality.name for modality in found.source.entry.modalities] == ["rgb"]
    assert any("bagel: modality depth left out" in notice for notice in found.notices)


def test_depth_is_of_the_object_alone(tmp_path: Path) -> None:
    found = find_set(make_mvtec_3d(tmp_path)).source
    depth = array(one(found.samples, "train").images["depth"])
    object_ = np.zeros((48, 48), dtype=bool)
    object_[16:32, 16:32] = True
    object_[24, 24] = False  # the measuring hole
    np.testing.assert_array_equal(np.isfinite(depth), object_)
    np.testing.assert_allclose(depth[16, 16:32], 0.48 + 0.1 * 16 / 48, atol=1e-6)


def test_eyecandies_depth_in_metres_and_lamp(tmp_path: Path) -> None:
    found = find_set(make_eyecandies(tmp_path)).source
    sample = one(found.samples, "test", "dents")
    depth = array(sample.images["depth"])
    assert (depth.dtype, depth.shape) == (np.float32, SIZE)
    assert (depth[3:9] == 2.5).all()
    assert (depth[:3] == 7.5).all()
    assert found.entry.modalities[1].scale == 0.1
    np.testing.assert_array_equal(array(sample.images["rgb"]), rgb(4))


def test_mulsen_joins_masks_and_sizes(tmp_path: Path) -> None:
    found = find_set(make_mulsen(tmp_path))
    both = one(found.source.samples, "test", "crack")
    assert array(both.images["infrared"]).shape == SIZE
    corner = np.zeros(SIZE, dtype=bool)
    corner[10:, 14:] = True
    np.testing.assert_array_equal(marked(both), corner | (mask() > 0))
    np.testing.assert_array_equal(marked(one(found.source.samples, "test", "hole")), corner)
    assert any("bent: 1 left out" in notice for notice in found.notices)
    assert any("point clouds left out" in notice for notice in found.notices)


def test_hyper_kvasir_split_is_by_name(tmp_path: Path) -> None:
    def tested(root: Path) -> set[str]:
        return {s.key for s in find_set(root).source.samples if (s.split, s.defect) == ("test", "good")}

    before = tested(make_hyper_kvasir(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert tested(tmp_path / "b") == before
    assert len({key.split("-")[3].rsplit("_", 1)[0] for key in before}) > 1  # not of one folder alone


def test_modalities_can_be_left_out(tmp_path: Path) -> None:
    found = find_set(make_eyecandies(tmp_path), modalities=[parse_modality("rgb=skip")]).source
    assert [(m.name, m.slot, m.scale) for m in found.entry.modalities] == [("depth", 0, 0.1)]
    with pytest.raises(ValueError, match="leaves none"):
        find_set(tmp_path, modalities=[parse_modality("rgb=skip"), parse_modality("depth=skip")])


def _cut_column(root: Path) -> None:
    path = root / "split_csv" / "1cls.csv"
    path.write_text(path.read_text().replace("label", "kind"))


def _two_classes_train_on_anomalies(root: Path) -> None:
    path = root / "split_csv" / "1cls.csv"
    path.write_text(path.read_text().replace("test,anomaly", "validation,anomaly"))


def _no_mask_in_table(root: Path) -> None:
    path = root / "split_csv" / "1cls.csv"
    path.write_text(path.read_text().replace("candle/Data/Masks/Anomaly/000.png", ""))


BAD = [
    (make_visa, "visa", _cut_column, r"1cls\.csv: has no column label"),
    (make_visa, "visa", _two_classes_train_on_anomalies, r"line 5: .*split 'validation'"),
    (make_visa, "visa", _no_mask_in_table, r"1cls\.csv, line 5: mask is empty"),
    (
        make_visa,
        "visa",
        lambda root: (root / "candle/Data/Images/Normal/0001.JPG").unlink(),
        r"line 3: .*0001\.JPG does",
    ),
    (make_visa, "mvtec", lambda root: None, "has no class folder"),
    (make_visa, "visa", lambda root: shutil.rmtree(root / "split_csv"), r"1cls\.csv: cannot be read"),
    (
        make_mvtec_3d,
        "mvtec_3d",
        lambda root: (root / "bagel/test/hole/gt/000.png").rename(root / "bagel/test/hole/gt/001.png"),
        "000.png has no mask",
    ),
    (make_mvtec_3d, "mvtec_3d", lambda root: shutil.rmtree(root / "bagel/train"), "no image in train/good"),
    (
        make_eyecandies,
        "eyecandies",
        lambda root: (root / "Lollipop/test_public/data/001_mask.png").unlink(),
        r"001_mask\.png is missing beside 001_image_4\.png",
    ),
    (
        make_eyecandies,
        "eyecandies",
        lambda root: (root / "Lollipop/train/data/000_info_depth.yaml").unlink(),
        r"000_info_depth\.yaml is missing",
    ),
    (make_mulsen, "mulsen_ad", lambda root: shutil.rmtree(root / "nut/Infrared"), "has no class folder; wanted .*RGB"),
    (make_bmad, "brats", lambda root: (root / "test/Ungood/label/00000_60.png").unlink(), "has no mask"),
    (make_bmad, "retinal_oct", lambda root: (root / "train/good/img").rename(root / "train/good/x"), "no image in"),
    (make_bmad, "liver_ct", lambda root: shutil.rmtree(root / "test"), "not in the layout of BMAD"),
    (make_bmad, "auto", lambda root: None, "looks like one class"),
    (
        make_hyper_kvasir,
        "hyper_kvasir",
        lambda root: (root / "segmented-images/masks/p1.jpg").unlink(),
        r"p1\.jpg has no mask",
    ),
    (
        make_hyper_kvasir,
        "hyper_kvasir",
        lambda root: shutil.rmtree(root / "segmented-images/masks"),
        "segmented-images/masks is missing",
    ),
]


@pytest.mark.parametrize(("make", "layout", "spoil", "message"), BAD)
def test_bad_copies(
    make: Callable[[Path], Path], layout: str, spoil: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    root = make(tmp_path / "copy")
    spoil(root)
    with pytest.raises(ValueError, match=message):
        find_set(root, layout=layout)


def test_bad_files_are_named_when_written(tmp_path: Path) -> None:
    info = make_eyecandies(tmp_path) / "Lollipop/train/data/001_info_depth.yaml"
    info.write_text("normalization: {min: 2}")
    with pytest.raises(ValueError, match=r"001_info_depth\.yaml: wanted normalization"):
        write_shards([find_set(tmp_path).source], tmp_path / "shards", progress=False)
    save(tmp_path / "x/bagel/train/good/rgb/000.png", rgb(0))
    save(tmp_path / "x/bagel/train/good/xyz/000.tiff", rgb(0))
    with pytest.raises(ValueError, match=r"xyz/000\.tiff: uint8 of shape .*wanted H x W x 3, real numbers"):
        write_shards([find_set(tmp_path / "x").source], tmp_path / "shards", progress=False)


def test_bmad_without_labels_and_with_strange_folders(tmp_path: Path) -> None:
    root = make_bmad(tmp_path / "RESC")
    shutil.rmtree(root / "test/Ungood/label")
    found = find_set(root)
    assert one(found.source.samples, "test", "anomaly").mask is None
    assert any("without a mask" in notice for notice in found.notices)
    assert any("abnormal images left out" in notice for notice in found.notices)
    (root / "train/good/angio").mkdir()
    with pytest.raises(ValueError, match="folder angio is none of img, label"):
        find_set(root)


def test_own_images_in_a_folder_called_brain(tmp_path: Path) -> None:
    assert find_set(make_mvtec(tmp_path / "brain_scans")).source.name == "brain_scans"


def test_bmad_archive_in_a_folder_of_its_own(tmp_path: Path) -> None:
    make_bmad(tmp_path / "Brain_AD" / "BraTS2021_slice")
    assert find_set(tmp_path / "Brain_AD").source.name == "brats"
