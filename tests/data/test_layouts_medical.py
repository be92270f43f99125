"""Scans that pydicom and nibabel wrote, as samples: upright, in their window, with their spacing."""

import io
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.medical_sets import (
    AXIAL,
    RAW,
    SHAPE,
    SPACING,
    lesion,
    make_medical,
    volume,
    write_dicom,
    write_nifti,
)
from PIL import Image

from unimmad.data.decode import decode_image, decode_mask_pixels
from unimmad.data.layouts import find_set
from unimmad.data.layouts.medical.convert import png_slices
from unimmad.data.layouts.source_set import SourceFile
from unimmad.data.modality import parse_modality
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.writing.shards import write_shards

pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")

WINDOW = '{"ct": {"center": 40, "width": 400}, "scan": {"center": 40, "width": 400}}'


def array(file: SourceFile) -> np.ndarray:
    return decode_image(file.read(), file.suffix, file.name)


def expected(values: np.ndarray) -> np.ndarray:
    """Of Hounsfield units in the window 40/400."""
    return np.rint(np.clip((values.astype(float) + 160) / 400, 0, 1) * 65535)


def axial(values: np.ndarray, number: int) -> np.ndarray:
    """Rows from front to back, columns from right to left."""
    return values[:, :, number].T


def images(root: Path) -> list[np.ndarray]:
    samples = find_set(root).source.samples
    return [array(next(iter(sample.images.values()))) for sample in samples if sample.split == "train"]


@pytest.mark.parametrize("axes", ["LPS", "RAS", "PIR", "SLA"])
def test_a_volume_is_upright_whatever_the_order_of_its_axes(axes: str, tmp_path: Path) -> None:
    write_nifti(tmp_path / "liver/train/good/a.nii.gz", volume(0), axes)
    (tmp_path / "windows.json").write_text(WINDOW)
    found = images(tmp_path)
    assert len(found) == SHAPE[2]  # across the thickest axis
    for number, image in enumerate(found):
        np.testing.assert_array_equal(image, expected(axial(volume(0), number)))


def _rotated(stored: np.ndarray, orientation: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """By a quarter: the new columns lead where the rows led."""
    return np.rot90(stored), (*orientation[3:], *(-value for value in orientation[:3]))


def test_dicom_slices_are_upright_however_the_patient_lay_and_equal_the_volume(tmp_path: Path) -> None:
    orientation: tuple[int, ...] = AXIAL
    for turns in range(4):
        stored = np.rot90(axial(volume(0), turns), turns)
        spacing = [SPACING[turns % 2], SPACING[1 - turns % 2]]
        path = tmp_path / "liver/train/good/p1" / f"{turns}.dcm"
        write_dicom(path, stored, orientation, PixelSpacing=[spacing[1], spacing[0]])
        orientation = _rotated(stored, orientation)[1]
    found = find_set(tmp_path).source
    assert [(m.name, m.kind) for m in found.entry.modalities] == [("ct", "gray")]
    assert found.entry.field == "medicine"
    for number, sample in enumerate(found.samples):
        np.testing.assert_array_equal(array(sample.images["ct"]), expected(axial(volume(0), number)))
        with Image.open(io.BytesIO(sample.images["ct"].read())) as image:
            assert image.info["dpi"] == pytest.approx((25.4 / SPACING[0], 25.4 / SPACING[1]), abs=0.05)
            assert image.info["spacing_mm"] == f"{SPACING[1]:g} {SPACING[0]:g}"
            assert (image.info["plane"], image.info["window"]) == ("axial", "-160 240")


def test_a_new_scan_becomes_the_pictures_that_shards_hold(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "liver/train/good/a.nii.gz", volume(0))
    (tmp_path / "windows.json").write_text(WINDOW)
    written = {sample.key: sample.images["scan"].read() for sample in find_set(tmp_path).source.samples}
    assert [png for _, png in png_slices(path, (-160, 240))] == list(written.values())
    slice_ = write_dicom(tmp_path / "b.dcm", axial(volume(0), 2))
    assert dict(png_slices(slice_))["b"] == list(written.values())[2]
    with pytest.raises(ValueError, match="neither DICOM nor NIfTI"):
        list(png_slices(tmp_path / "windows.json"))


def test_volumes_with_lesions_become_normal_and_anomalous_slices(tmp_path: Path) -> None:
    found = find_set(make_medical(tmp_path / "scans"))
    source = found.source
    assert {(m.name, m.kind) for m in source.entry.modalities} == {("t1", "gray"), ("flair", "gray")}
    index = write_shards([source], tmp_path / "shards", progress=False)
    assert Counter((sample.split, sample.defect) for sample in index.samples) == {
        ("train", "good"): 5,
        ("calibration", "good"): 5,
        ("test", "good"): 8,
        ("test", "tumor"): 2,
    }
    shards = ShardSet.open([tmp_path / "shards"])
    for ref in (ref for refs in shards.classes("test").values() for ref in refs):
        sample = shards.read(ref, 16)
        assert sample.mask_HW is not None
        assert sample.mask_HW.any() == sample.anomalous
    sick = [sample for sample in source.samples if sample.anomalous]
    for number, sample in zip((1, 2), sick, strict=True):
        assert sample.mask is not None
        marked = decode_mask_pixels(sample.mask.read(), ".png", sample.mask.name)
        np.testing.assert_array_equal(marked, axial(lesion(), number) > 0)
        assert sample.images["t1"].name.endswith("test/tumor/t1/p1.nii.gz")
    for said in ("marks nothing count as normal", "each series has its own range", "pixels measure from 0.8 to 1.5 mm"):
        assert any(said in notice for notice in found.notices), found.notices


def test_windows_are_the_files_own_or_what_windows_json_says(tmp_path: Path) -> None:
    good = tmp_path / "liver/train/good"
    for number, window in enumerate(((40, 400), (-600, 1500))):
        write_dicom(good / f"p{number}/1.dcm", axial(volume(0), 0), WindowCenter=window[0], WindowWidth=window[1])
    with pytest.raises(ValueError, match=r"1\.dcm has the window 40/400, .*1\.dcm -600/1500: CT needs one for all"):
        find_set(tmp_path)
    (tmp_path / "windows.json").write_text(WINDOW)
    for image in images(tmp_path):
        np.testing.assert_array_equal(image, expected(axial(volume(0), 0)))
    (tmp_path / "windows.json").write_text('{"ct": {"center": 40, "width": 0}}')
    with pytest.raises(ValueError, match=r"windows\.json: .*width.*; wanted "):
        find_set(tmp_path)


def test_a_series_without_a_common_window_has_its_own_range(tmp_path: Path) -> None:
    for number, factor in enumerate((1, 3)):
        for slice_ in range(2):
            values = axial(np.abs(volume(0)), slice_) * factor
            path = tmp_path / f"knee/train/Normal/p{number}/study/series/{slice_}.dcm"
            write_dicom(path, values, Modality="MR", WindowCenter=100 * number + slice_)
    (path.parent / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    found = find_set(tmp_path)
    assert [modality.name for modality in found.source.entry.modalities] == ["mri"]
    assert any("Normal: taken as good" in notice for notice in found.notices)
    shown = [array(sample.images["mri"]) for sample in found.source.samples]
    for first, second in zip(shown[:2], shown[2:], strict=True):
        np.testing.assert_allclose(first.astype(float), second, atol=1)
    assert shown[0].min() == 0
    assert max(image.max() for image in shown) == 65535


def test_masks_of_dicom_slices_turn_with_them_and_radiographs_stay(tmp_path: Path) -> None:
    lung = tmp_path / "lung"
    write_dicom(lung / "train/good/a.dcm", axial(volume(0), 0))
    stored = axial(volume(1), 0)[::-1]
    write_dicom(lung / "test/nodule/b", stored, (1, 0, 0, 0, -1, 0))  # no suffix
    mask = lung / "ground_truth/nodule/b_mask.png"
    mask.parent.mkdir(parents=True)
    Image.fromarray(axial(lesion(), 1)[::-1] * 255).save(mask)
    sick = next(sample for sample in find_set(tmp_path).source.samples if sample.anomalous)
    assert sick.mask is not None
    np.testing.assert_array_equal(array(sick.images["ct"]), expected(axial(volume(1), 0)))
    np.testing.assert_array_equal(array(sick.mask) > 0, axial(lesion(), 1) > 0)
    plain = {"ImageOrientationPatient": None, "Modality": "DX", "PhotometricInterpretation": "MONOCHROME1"}
    write_dicom(tmp_path / "other/chest/train/good/c.dcm", stored, **plain)
    (image,) = images(tmp_path / "other")
    np.testing.assert_array_equal(image, 65535 - expected(stored))


def _published(name: str) -> str:
    """A file that comes with pydicom."""
    from pydicom.data import get_testdata_file

    path = get_testdata_file(name, download=False)
    assert isinstance(path, str)
    return path


@pytest.mark.parametrize(("name", "spacing"), [("CT_small.dcm", 0.661468), ("MR_small.dcm", 0.3125)])
def test_files_of_real_scanners(name: str, spacing: float) -> None:
    ((_, png),) = png_slices(Path(_published(name)), (-160, 1240))
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == {"CT_small.dcm": (128, 128), "MR_small.dcm": (64, 64)}[name]
        assert image.info["spacing_mm"] == f"{spacing:g} {spacing:g}"
        assert np.asarray(image).std() > 1000


def _ct(**elements: Any) -> Callable[[Path], object]:
    return lambda good: write_dicom(good / "x.dcm", axial(volume(0), 0), **elements)


def _two_planes(good: Path) -> None:
    write_dicom(good / "x.dcm", axial(volume(0), 0))
    write_dicom(good / "y.dcm", axial(volume(0), 0), (1, 0, 0, 0, 0, -1))


def _sick(good: Path, affine: object = None, mask: np.ndarray | None = None) -> Path:
    write_nifti(good / "a.nii.gz", np.abs(volume(0)))
    write_nifti(good.parents[1] / "test/tumor/b.nii.gz", np.abs(volume(1)))
    if mask is not None:
        write_nifti(good.parents[1] / "ground_truth/tumor/b.nii.gz", mask, affine=affine)
    return good


def _without_codes(good: Path) -> None:
    image = nibabel.load(write_nifti(good / "a.nii", volume(0)))
    image.header["qform_code"] = image.header["sform_code"] = 0
    image.to_filename(good / "b.nii")
    (good / "a.nii").unlink()
    content = bytearray((good / "b.nii").read_bytes())
    content[252:256] = bytes(4)
    (good / "b.nii").write_bytes(content)


def _a_case_a_folder(good: Path) -> None:
    for name in ("case1_t1", "case1_flair"):
        write_nifti(good / "case1" / f"{name}.nii.gz", volume(0))


def _cut(good: Path) -> None:
    """A mask of which the end is missing."""
    _sick(good, None, lesion())
    path = write_nifti(good.parents[1] / "ground_truth/tumor/x.nii.gz", volume(0))
    path.write_bytes(path.read_bytes()[:-900])
    write_nifti(good.parents[1] / "test/tumor/x.nii.gz", np.abs(volume(1)))


def _huge(good: Path) -> None:
    """A header that claims 32 GiB."""
    path = write_nifti(good / "x.nii", volume(0))
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([2048, 2048, 4096], dtype="<i2").tobytes()
    path.write_bytes(content)


def _long_extension(good: Path) -> None:
    """A header with an extension that claims a gibibyte."""
    path = write_nifti(good / "x.nii", volume(0))
    content = bytearray(path.read_bytes())
    content[108:112] = np.array([384], dtype="<f4").tobytes()
    extension = np.array([2**30, 6], dtype="<i4").tobytes() + bytes(24)
    path.write_bytes(bytes(content[:348]) + b"\1\0\0\0" + extension + bytes(content[352:]))


MOVED = np.array(RAW)
MOVED[0, 3] = 9
BAD: list[tuple[Callable[[Path], object], str]] = [
    (_ct(ImageOrientationPatient=None), r"x\.dcm: a slice of CT without ImageOrientationPatient"),
    (_ct(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), r"x\.dcm: its orientation .* not two perpendicular"),
    (_ct(PixelSpacing=None), r"x\.dcm: has neither PixelSpacing nor"),
    (_ct(NumberOfFrames=3), r"x\.dcm: holds 3 pictures"),
    (_ct(PhotometricInterpretation="RGB"), r"x\.dcm: is RGB, not gray"),
    (_ct(Rows=60000, Columns=60000), r"x\.dcm: .*more than the limit"),
    (lambda good: shutil.copy(_published("badVR.dcm"), good), r"badVR\.dcm: .*1A"),
    (_ct(PhotometricInterpretation=None), r"x\.dcm: holds no picture"),
    (_ct(deflated=True), r"x\.dcm: does not open as DICOM \(deflated"),
    (_ct(WindowWidth=None), r"x\.dcm has no window, which CT needs; say one in .*windows\.json"),
    (_two_planes, r"x\.dcm is axial, .*y\.dcm coronal: make them classes"),
    (lambda good: (good / "x.dcm").write_bytes(b"\0" * 300), r"x\.dcm: does not open as DICOM"),
    (lambda good: (good / "x.nii").write_bytes(b"\0" * 400), r"x\.nii: does not open as NIfTI"),
    (lambda good: write_nifti(good / "x.nii", np.stack([volume(0)] * 2, axis=3)), r"x\.nii: its shape is .*one volume"),
    (_cut, r"x\.nii\.gz: is cut short"),
    (_long_extension, r"x\.nii: does not open as NIfTI \(its header's extensions are damaged"),
    (_huge, r"x\.nii: .*more than the limit"),
    (_a_case_a_folder, r"good/case1 holds 2 volumes; if they are modalities, .*good/t1/case1\.nii\.gz"),
    (_without_codes, r"b\.nii: says no orientation"),
    (_sick, r"b\.nii\.gz has no mask b\.nii\.gz in .*: which of its slices are anomalous is not known"),
    (lambda good: _sick(good, MOVED, lesion()), r"ground_truth/tumor/b\.nii\.gz does not lie on the grid of .*b\.nii"),
    (lambda good: _sick(good, None, 0 * lesion()), r"b\.nii\.gz marks nothing"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD)
def test_what_is_unclear_is_refused_by_name(spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    good = tmp_path / "liver/train/good"
    good.mkdir(parents=True)
    spoil(good)
    with pytest.raises(ValueError, match=message):
        _read_all(tmp_path)


def _read_all(root: Path) -> list[bytes]:
    samples = find_set(root, layout="medical").source.samples
    return [file.read() for sample in samples for file in sample.images.values()]


def test_damaged_scans_are_listed_or_skipped_with_all_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "scans"
    for number, (part, count) in enumerate((("train", 3), ("test", 2))):
        for name in range(count):
            slice_ = axial(np.maximum(volume(9 * number + name), 0), 0)
            path = root / "liver" / part / "good/ser" / f"{name}.dcm"
            write_dicom(path, slice_, Modality="MR", WindowCenter=None, WindowWidth=None)
    no_header, cut = (root / "liver/train/good/ser" / f"{name}.dcm" for name in (0, 1))
    no_header.write_bytes(b"\0" * 128 + b"DICM" + b"\0" * 40)
    cut.write_bytes(cut.read_bytes()[:-200])  # the header is whole; the pixels give the series its range
    found = find_set(root).source
    with pytest.raises(ValueError, match="2 of 5 samples cannot be written") as caught:
        write_shards([found], tmp_path / "shards", progress=False)
    assert str(no_header) in str(caught.value)
    assert str(cut) in str(caught.value)
    index = write_shards([found], tmp_path / "shards", progress=False, on_error="skip")
    assert [sample.source for sample in index.samples] == [
        f"liver/{name}.dcm" for name in ("train/good/ser/2", "test/good/ser/0", "test/good/ser/1")
    ]
    assert any("left out: 2 of 5" in said for said in caplog.messages)
    with pytest.raises(ValueError, match="holds no picture"):
        find_set(_only(root / "liver", no_header))


def _only(class_folder: Path, path: Path) -> Path:
    """A set of one class with this one file to train on."""
    target = class_folder.parents[1] / "only" / class_folder.name / "train/good"
    target.mkdir(parents=True)
    shutil.copy(path, target)
    return target.parents[2]


def test_hounsfield_units_without_a_window_are_named_when_written(tmp_path: Path) -> None:
    write_nifti(tmp_path / "scans/liver/train/good/a.nii.gz", volume(0))
    with pytest.raises(ValueError, match=r"a\.nii\.gz: values down to -1000 look like Hounsfield units"):
        write_shards([find_set(tmp_path / "scans").source], tmp_path / "shards", progress=False)


def test_one_patient_in_two_splits_is_said(tmp_path: Path) -> None:
    for part in ("train/good", "test/good"):
        write_dicom(tmp_path / "liver" / part / "x.dcm", axial(volume(0), 0), PatientID="7")
    assert any("are of one patient" in notice for notice in find_set(tmp_path).notices)


def test_no_name_of_a_patient_is_written(tmp_path: Path) -> None:
    path = tmp_path / "scans/liver/train/good/x.dcm"
    write_dicom(path, axial(volume(0), 0), PatientName="Doe^Jane", PatientID="4711-0815")
    assert b"Doe^Jane" in path.read_bytes()
    write_shards([find_set(tmp_path / "scans").source], tmp_path / "shards", progress=False)
    written = b"".join(file.read_bytes() for file in (tmp_path / "shards").iterdir())
    assert b"Doe" not in written
    assert b"4711-0815" not in written


@pytest.mark.parametrize(("name", "package"), [("x.dcm", "pydicom"), ("x.nii", "nibabel")])
def test_a_missing_package_is_one_line(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "liver/train/good" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"")
    for module in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf'{name}: .* by the package {package}: pip install "unimmad\[medical\]"'):
        find_set(tmp_path)


def test_the_user_names_an_only_modality(tmp_path: Path) -> None:
    write_nifti(tmp_path / "liver/train/good/a.nii.gz", np.abs(volume(0)))
    found = find_set(tmp_path, modalities=[parse_modality("pet=gray")])
    assert [(m.name, m.kind) for m in found.source.entry.modalities] == [("pet", "gray")]
