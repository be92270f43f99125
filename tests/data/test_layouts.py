import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
from disk_sets import make_multimodal, make_mvtec, mask, rgb, save

from unimmad.data.decode import decode_image
from unimmad.data.layouts import find_set
from unimmad.data.layouts.scan import check_called_alike
from unimmad.data.layouts.source_set import SourceSet
from unimmad.data.modality import parse_modality


def modalities(found: SourceSet) -> list[tuple[str, str, int]]:
    return [(modality.name, modality.kind, modality.slot) for modality in found.entry.modalities]


def test_mvtec(tmp_path: Path) -> None:
    found = find_set(make_mvtec(tmp_path / "parts"), field="industry")
    source = found.source
    assert (source.name, source.entry.field, found.notices) == ("parts", "industry", ())
    assert modalities(source) == [("rgb", "rgb", 0)]
    parts = [(s.split, s.defect, s.anomalous, s.mask is not None) for s in source.samples]
    assert parts == [("train", "good", False, False)] * 3 + [("test", "bent", True, True)] * 2 + [
        ("test", "good", False, False)
    ]
    assert [s.key for s in source.samples][3] == "bolt-test-bent-000"
    assert source.samples[4].mask is not None
    assert source.samples[4].mask.name.endswith("bent/001_mask.png")


def test_mvtec_of_single_channel_images_is_gray(tmp_path: Path) -> None:
    for part in ("train/good", "test/good"):
        save(tmp_path / "tile" / part / "a.png", mask())
    assert modalities(find_set(tmp_path).source) == [("gray", "gray", 0)]
    told = find_set(tmp_path, modalities=[parse_modality("thermal=depth:2")])
    assert modalities(told.source) == [("thermal", "depth", 0)]
    assert told.source.entry.modalities[0].scale == 2


def test_mask_of_the_image_s_own_name(tmp_path: Path) -> None:
    folder = make_mvtec(tmp_path) / "bolt" / "ground_truth" / "bent"
    (folder / "000_mask.png").rename(folder / "000.png")
    source = find_set(tmp_path).source
    assert source.samples[3].mask is not None
    assert source.samples[3].mask.name.endswith("bent/000.png")


def test_class_without_ground_truth_has_no_masks_and_says_so(tmp_path: Path) -> None:
    shutil.rmtree(make_mvtec(tmp_path) / "bolt" / "ground_truth")
    found = find_set(tmp_path)
    assert all(sample.mask is None for sample in found.source.samples)
    assert len(found.notices) == 1
    assert "without a mask" in found.notices[0]


def test_one_missing_mask_is_refused(tmp_path: Path) -> None:
    (make_mvtec(tmp_path) / "bolt/ground_truth/bent/001_mask.png").unlink()
    with pytest.raises(ValueError, match=r"bent/001\.png has no mask"):
        find_set(tmp_path)


def test_multimodal(tmp_path: Path) -> None:
    found = find_set(make_multimodal(tmp_path))
    assert modalities(found.source) == [("rgb", "rgb", 0), ("depth", "depth", 1)]
    depth = found.source.entry.modalities[1]
    assert (depth.scale, depth.invalid) == (0.5, 0.0)
    assert found.notices == ()
    cut = found.source.samples[2]
    assert (cut.defect, sorted(cut.images), cut.mask is not None) == ("cut", ["depth", "rgb"], True)
    assert found.source.samples[3].mask is None


def test_multimodal_unknown_name_is_gray_and_said_so(tmp_path: Path) -> None:
    for folder in make_multimodal(tmp_path).rglob("rgb"):
        folder.rename(folder.with_name("channel7"))
    found = find_set(tmp_path)
    assert modalities(found.source) == [("channel7", "gray", 0), ("depth", "depth", 1)]
    assert ["channel7" in notice for notice in found.notices] == [True]
    told = find_set(tmp_path, modalities=[parse_modality("depth=skip"), parse_modality("channel7=rgb")])
    assert modalities(told.source) == [("channel7", "rgb", 0)]
    assert told.notices == ()


def test_multimodal_modality_without_any_image_is_left_out_and_said_so(tmp_path: Path) -> None:
    root = make_multimodal(tmp_path)
    for part in ("train/good", "test/good", "test/cut"):
        (root / "bagel" / part / "ir").mkdir()
    found = find_set(root)
    assert [name for name, _, _ in modalities(found.source)] == ["rgb", "depth"]
    assert found.notices == (f"{root / 'bagel'}: modality ir left out, none of its folders has an image",)
    save(root / "bagel/train/good/ir/000.png", mask())
    assert not any("left out" in notice for notice in find_set(root).notices)


def test_multimodal_missing_mask(tmp_path: Path) -> None:
    folder = make_multimodal(tmp_path) / "bagel/test/cut/gt"
    (folder / "000.png").rename(folder / "001.png")
    with pytest.raises(ValueError, match=r"cut/\w+/000\.png has no mask"):
        find_set(tmp_path)
    shutil.rmtree(folder)
    found = find_set(tmp_path)
    assert found.source.samples[2].mask is None
    assert "without a mask" in found.notices[0]


@pytest.mark.parametrize(
    ("called", "name"),
    [(lambda stem: f"{stem}_range", "000_range"), (lambda stem: f"depth-{stem}", "depth-000")],
)
def test_modalities_whose_files_are_called_otherwise_are_named(tmp_path: Path, called, name: str) -> None:
    for path in make_multimodal(tmp_path).rglob("depth/*.png"):
        path.rename(path.with_stem(called(path.stem)))
    said = rf"must be called alike in all modalities, but depth has {name} where rgb has 000; rename"
    with pytest.raises(ValueError, match=said):
        find_set(tmp_path)
    assert find_set(tmp_path, modalities=[parse_modality("depth=skip")]).source.samples


def test_modalities_of_other_samples_are_not_taken_for_called_otherwise(tmp_path: Path) -> None:
    for ours, theirs in [
        ("0 1 2", "10 11 12"),
        ("5", "15"),
        ("a b", "a_ir b_ir"),
        ("00 01_x", "00 01_y"),
        ("000 001", "000_ir"),
        ("1_2 12", "1_2_ir 13_ir"),
        ("01", ""),
        ("bolt_1", "nut_1"),
    ]:
        check_called_alike(tmp_path, {"rgb": ours.split(), "ir": theirs.split()})
    numbers = range(1, 12)
    with pytest.raises(ValueError, match="but rgb has 1 where ir has 1_ir"):
        check_called_alike(tmp_path, {"rgb": [f"{n}" for n in numbers], "ir": [f"{n}_ir" for n in numbers]})


def test_modality_folders_that_differ_by_case_alone_are_named(tmp_path: Path) -> None:
    for folder in make_multimodal(tmp_path).rglob("test/*/rgb"):
        folder.rename(folder.with_name("RGB"))
    with pytest.raises(ValueError, match=r"has a modality rgb and another RGB; call them alike, or .* rgb=skip"):
        find_set(tmp_path)


def test_mask_without_its_image_is_left_out_and_said_so(tmp_path: Path) -> None:
    cut = make_multimodal(tmp_path / "food") / "bagel/test/cut"
    for name in ("rgb", "depth"):
        (cut / name / "000.png").unlink()
    found = find_set(tmp_path / "food")
    assert {sample.defect for sample in found.source.samples} == {"good"}
    assert found.notices == (f"{cut / 'gt'}: mask 000 left out, without an image",)

    bolt = make_mvtec(tmp_path / "parts") / "bolt"
    masks = bolt / "ground_truth/bent"
    for name in ("000.png", "001.png"):
        (bolt / "test/bent" / name).unlink()
    assert find_set(tmp_path / "parts").notices == (f"{masks}: mask 000_mask and 1 more left out, without an image",)
    (bolt / "test/bent").rmdir()
    assert find_set(tmp_path / "parts").notices == (f"{masks}: left out, there is no {bolt / 'test/bent'}",)


def test_positions_become_depth(tmp_path: Path) -> None:
    positions = np.random.default_rng(0).random((12, 16, 3)).astype(np.float32) + 1
    positions[0] = 0
    for part in ("train/good", "test/good"):
        save(tmp_path / "cake" / part / "rgb" / "000.png", rgb(0))
        (tmp_path / "cake" / part / "xyz").mkdir()
        tifffile.imwrite(tmp_path / "cake" / part / "xyz" / "000.tiff", positions, photometric="rgb")
    source = find_set(tmp_path).source
    assert modalities(source) == [("rgb", "rgb", 0), ("xyz", "depth", 1)]
    assert (source.entry.modalities[1].scale, source.entry.modalities[1].invalid) == (1.0, None)
    file = source.samples[0].images["xyz"]
    depth = decode_image(file.read(), file.suffix, file.name)
    assert np.isnan(depth[0]).all()
    np.testing.assert_array_equal(depth[1:], positions[1:, :, 2])


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path)
    (root / "README.md").write_text("about")
    (root / "licences").mkdir()
    (root / "licences" / "LICENCE.txt").write_text("free")
    (root / ".cache").mkdir()
    (root / "bolt/train/good/notes.txt").write_text("x")
    save(root / "bolt/train/bent/000.png", rgb(0))
    save(root / "bolt/validation/good/000.png", rgb(0))
    found = find_set(root)
    assert len(found.source.samples) == 6
    for word in ("licences", r".txt", "train/bent", "validation"):
        assert sum(word in notice for notice in found.notices) == 1, word
    assert len(found.notices) == 4


def test_keys_stay_unique_without_dots(tmp_path: Path) -> None:
    for name in ("a.b", "a_b", "a b"):
        save(tmp_path / "bolt/train/good" / f"{name}.png", rgb(0))
    keys = [sample.key for sample in find_set(tmp_path).source.samples]
    assert len(set(keys)) == 3
    assert not any("." in key for key in keys)


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere does not exist"):
        find_set(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no class folder"):
        find_set(tmp_path)
    with pytest.raises(ValueError, match="looks like one class"):
        find_set(make_mvtec(tmp_path) / "bolt")


def test_empty_class(tmp_path: Path) -> None:
    shutil.rmtree(make_mvtec(tmp_path) / "bolt/train/good")
    with pytest.raises(ValueError, match=r"bolt has no image in train/good"):
        find_set(tmp_path)
    make_mvtec(tmp_path, "nut")
    with pytest.raises(ValueError, match=r"bolt has no image in train/good"):
        find_set(tmp_path)


def test_class_folder_without_anything_in_it(tmp_path: Path) -> None:
    (make_mvtec(tmp_path) / "nut").mkdir()
    with pytest.raises(ValueError, match=r"class .*nut is empty; add images in train/good or move the class away"):
        find_set(tmp_path)
    (tmp_path / "nut" / ".keep").write_text("")
    with pytest.raises(ValueError, match=r"class .*nut is empty"):
        find_set(tmp_path)


def test_two_layouts_in_one_folder(tmp_path: Path) -> None:
    make_mvtec(make_multimodal(tmp_path))
    with pytest.raises(ValueError, match="mixes layouts"):
        find_set(tmp_path)
    with pytest.raises(ValueError, match="no image in train/good"):
        find_set(tmp_path, layout="multimodal")


def test_two_files_of_one_name(tmp_path: Path) -> None:
    save(make_mvtec(tmp_path) / "bolt/train/good/000.jpg", rgb(0))
    with pytest.raises(ValueError, match=r"000\.png and 000\.jpg name one sample twice"):
        find_set(tmp_path)


def test_modality_options_that_do_not_fit(tmp_path: Path) -> None:
    root = make_multimodal(tmp_path)
    with pytest.raises(ValueError, match=r"--modality ir: .* has only depth, rgb"):
        find_set(root, modalities=[parse_modality("ir=gray")])
    with pytest.raises(ValueError, match="given twice"):
        find_set(root, modalities=[parse_modality("rgb=gray"), parse_modality("rgb=rgb")])
    with pytest.raises(ValueError, match=r"2 modalities .*the model takes 1"):
        find_set(root, max_modalities=1)
    two = [parse_modality("a=gray"), parse_modality("b=gray")]
    with pytest.raises(ValueError, match="one image a sample"):
        find_set(make_mvtec(tmp_path / "other"), modalities=two)
