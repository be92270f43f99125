"""One thing wrong in a dataset, one finding with the right files; and nothing of a dataset that is right."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
from audit.made import audited, make_parts, part, square_mask, told
from data.disk_sets import save
from PIL import Image, ImageFile

from unimmad.audit.findings import Severity
from unimmad.audit.image_header import read_header
from unimmad.data.layouts import find_sets
from unimmad.data.writing.shards import write_shards


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return make_parts(tmp_path / "raw")


def files(found, check) -> list[str]:
    return [Path(file).name for one in told(found, check) for file in one.files]


def test_nothing_is_said_of_a_set_that_is_right(parts: Path) -> None:
    found = audited(parts)
    assert found.findings == ()
    assert len(found.samples) == 24


def test_every_file_that_cannot_be_used_is_named_in_one_pass(parts: Path) -> None:
    (parts / "part/train/good/03.png").write_bytes(b"no picture")
    save(parts / "part/ground_truth/hole/01_mask.png", square_mask(0, 0, 4, of=20))
    [unreadable] = told(audited(parts), "unreadable")
    assert unreadable.severity == Severity.ERROR
    assert unreadable.count == 2
    assert "03.png" in unreadable.files[0]
    assert "20 x 20" in unreadable.files[1]


def test_twelve_bits_in_sixteen_and_one_such_among_others(tmp_path: Path) -> None:
    dark = make_parts(tmp_path / "dark")
    for path in dark.rglob("*.png"):
        if "ground_truth" not in path.parts:
            save(path, np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16)
    assert audited(dark).findings == ()  # shards of it have their range
    [finding] = told(audited(dark, modalities=["rgb=gray:0:65535"]), "values")
    assert finding.severity == Severity.WARNING
    assert "12 bits stored as uint16" in finding.what

    mixed = make_parts(tmp_path / "mixed")
    for path in (mixed / "part").glob("t*/*/*.png"):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16)
        save(path, grey if path.parent.name == "good" and path.stem == "05" else grey * 256)
    [finding] = told(audited(mixed), "values")
    assert {Path(file).name for file in finding.files} == {"05.png"}

    later = make_parts(tmp_path / "later")
    for path in (later / "part").glob("t*/*/*.png"):
        grey = np.asarray(Image.open(path).convert("L"))
        save(path, grey if path.parts[-3] == "train" else grey.astype(np.uint16) * 16)
    [finding] = told(audited(later), "values")  # whose range training tells nothing of
    assert "12 bits stored as uint16" in finding.what
    assert {Path(file).parts[-3] for file in finding.files} == {"test"}

    night = make_parts(tmp_path / "night")
    for path in (night / "part").glob("t*/*/*.png"):
        grey = np.asarray(Image.open(path).convert("L"))
        dark = path.parent.name == "good" and path.stem == "05"
        save(path, (grey // 9) if dark else grey.astype(np.uint16) * 256)
    assert told(audited(night), "values") == []  # a dark picture is a dark picture


def test_stored_otherwise(parts: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(part(3)).save(parts / "part/train/good/03.png", exif=turned)
    save(parts / "part/train/good/04.png", np.repeat(part(4)[:, :, :1], 3, axis=2))
    save(parts / "part/train/good/05.png", np.full((48, 48, 3), 77, np.uint8))
    found = audited(parts)
    assert "03.png" in files(found, "EXIF")
    assert {"04.png", "05.png"} == set(files(found, "colours"))
    assert files(found, "blank") == ["05.png"]


@pytest.mark.filterwarnings("ignore:.*are stored as RGB")
def test_a_stack_of_images_that_its_writer_made_a_picture_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_parts(tmp_path / "raw", suffix=".tif")
    for number in (1, 2):
        tifffile.imwrite(root / f"part/train/good/{number:02d}.tif", part(number).transpose(2, 0, 1))
    [finding] = told(audited(root), "colours")
    assert [Path(file).name for file in finding.files] == ["01.tif", "02.tif"]
    assert "2 of 24 images store their channels as planes" in finding.what
    with caplog.at_level(logging.WARNING):
        write_shards([one.source for one in find_sets(root)], tmp_path / "shards")
    assert "rgb: 2 of 24 images store their channels as planes" in caplog.text


def test_masks(parts: Path) -> None:
    truth = parts / "part/ground_truth/hole"
    save(truth / "00_mask.png", square_mask(0, 0, 0))
    save(truth / "01_mask.png", square_mask(0, 0, 48))
    save(truth / "02_mask.png", 255 - square_mask(0, 0, 8))
    save(truth / "03_mask.png", square_mask(10, 10, 2) + square_mask(40, 40, 8))
    found = audited(parts, image_size=24)
    by_what = {one.what: [Path(file).name for file in one.files] for one in told(found, "masks")}
    assert by_what == {
        "empty masks: 1 of 6": ["00_mask.png"],
        "masks that mark the whole image: 1 of 6": ["01_mask.png"],
        "1 of 6 masks mark more than half of the image": ["02_mask.png"],
    }
    [small] = told(found, "small defects")
    assert "the least 1" in small.what
    mask = next(sample.mask for sample in found.samples if sample.mask and sample.mask.file.endswith("03_mask.png"))
    assert (mask.regions, mask.smallest, mask.smallest_at_size, mask.lost) == (2, 4, 1.0, 0)


def test_long_images_that_shrink_much(tmp_path: Path) -> None:
    root = make_parts(tmp_path / "raw")
    for path in root.rglob("*.png"):
        array = np.asarray(Image.open(path))
        save(path, np.concatenate([array] * 5, axis=1))
    found = told(audited(root), "size")
    assert [one.severity for one in found] == [Severity.WARNING, Severity.WARNING]
    assert "240 x 48" in found[0].what
    assert "tiles" in found[0].advice
    assert "5.0 times" in found[1].what


def test_the_same_picture_twice(parts: Path) -> None:
    save(parts / "part/test/good/00.png", part(3))  # pixels of a training image
    save(parts / "part/test/hole/02.png", part(101))  # of a normal test image
    Image.fromarray(part(7)).save(parts / "part/train/good/12.jpg", quality=80)  # saved again
    found = audited(parts)
    exact = {
        (one.severity, one.files[0].count(" = "), "training and test" in one.what) for one in told(found, "duplicates")
    }
    assert exact == {(Severity.ERROR, 1, True), (Severity.ERROR, 1, False), (Severity.NOTE, 1, False)}
    assert [pair.files[0][-11:] for pair in found.duplicates] == ["good/03.png", "good/01.png", "good/07.png"]


def test_labels_that_the_way_of_storing_tells(parts: Path) -> None:
    for path in (parts / "part/test/hole").iterdir():
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()
    [finding] = told(audited(parts), "label")
    assert finding.severity == Severity.ERROR
    assert "the file type tells the label of 100%" in finding.what


def make_sensors(root: Path, shift: int, samples: range) -> Path:
    """RGB and depth of one outline; the depth of ``samples`` is moved to the right."""
    for split, defect, count in (("train", "good", 12), ("test", "good", 6), ("test", "hole", 6)):
        for number in range(count):
            folder = root / "part" / split / defect
            image = part(number + 50 * (split == "test") + 100 * (defect == "hole"), side=96)
            height = (image[:, :, 0] > 105).astype(np.uint16) * 3000 + 40000
            if number in samples:
                height = np.roll(height, shift, axis=1)
            save(folder / "rgb" / f"{number:02d}.png", image)
            save(folder / "depth" / f"{number:02d}.png", height)
            if defect == "hole":
                save(folder / "gt" / f"{number:02d}.png", square_mask(20, 20, 10, of=96))
    return root


@pytest.mark.parametrize(
    ("shift", "samples", "severity", "count"),
    [(0, range(0), None, 0), (12, range(20), Severity.ERROR, 24), (12, range(2, 3), Severity.WARNING, 3)],
)
def test_modalities_that_do_not_lie_over_each_other(tmp_path: Path, shift, samples, severity, count) -> None:
    found = told(audited(make_sensors(tmp_path / "raw", shift, samples)), "alignment")
    assert [one.severity for one in found] == ([] if severity is None else [severity])
    assert sum(one.count for one in found) == count
    if severity == Severity.ERROR:
        assert "rgb and depth" in found[0].where or "depth" in found[0].where
        assert "-12.5% of the width" in found[0].what


def test_depth_in_the_wrong_unit_and_without_a_measured_pixel(tmp_path: Path) -> None:
    root = make_sensors(tmp_path / "raw", 0, range(0))
    for path in root.rglob("depth/*.png"):
        array = np.asarray(Image.open(path)).astype(np.float32)
        array = np.full_like(array, np.nan) if path.stem == "04" else array
        np.save(path.with_suffix(".npy"), array)  # millimetres, read as metres
        path.unlink()
    found = {one.what for one in told(audited(root), "depth")}
    assert len(found) == 2
    assert any("no measured pixel" in what for what in found)
    assert any("spans 3e+03 m" in what for what in found)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_places_are_told_and_pixels_unpacked_once(parts: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 0.0)}
    name = f"03{suffix}"
    for number in (3, 4):
        (parts / f"part/train/good/{number:02d}.png").unlink()
    Image.fromarray(part(3)).save(parts / "part/train/good" / name, exif=exif)
    Image.fromarray(part(4)).save(parts / "part/train/good" / f"04{suffix}")
    assert files(audited(parts), "EXIF") == [name]
    data = (parts / "part/train/good" / f"04{suffix}").read_bytes()
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("unpacked once more"))
    assert read_header(data).mode == "RGB"
