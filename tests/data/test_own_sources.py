"""What people's folders hold: other names of normal, stray files, broken ones, masks that can't be meant, copies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from disk_sets import make_mvtec, make_visa, mask, rgb, save
from PIL import Image

from unimmad.cli import shards as shards_command
from unimmad.data.decode import decode_image, decode_mask_pixels
from unimmad.data.index import Index, Member, load_index
from unimmad.data.layouts import find_set
from unimmad.data.layouts.source_set import SourceFile
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.writing import shards as shards_module
from unimmad.data.writing.packing import PackedSample, Work, pack_or_say
from unimmad.data.writing.shards import write_shards
from unimmad.data.writing.verify import verify_folder
from unimmad.evaluation.header import _duplicates, _without_masks
from unimmad.inference.reading import _decoded


def write(root: Path, **options: Any) -> Index:
    source = find_set(root).source
    return write_shards([source], root.with_name(f"{root.name}_shards"), progress=False, **options)


def stored(root: Path, member: Member | None) -> bytes:
    assert member is not None
    data = (root.with_name(f"{root.name}_shards") / "test-000000.tar").read_bytes()
    return data[member.offset : member.offset + member.length]


def labels(root: Path) -> list[tuple[str, str]]:
    return sorted((sample.split, sample.defect) for sample in find_set(root).source.samples)


@pytest.mark.parametrize(
    ("before", "after"),
    [("test/good", "test/Good"), ("test/good", "test/OK"), ("train/good", "train/normal"), ("train", "Train")],
)
def test_normal_folders_go_by_several_names(tmp_path: Path, before: str, after: str) -> None:
    root = make_mvtec(tmp_path / "parts")
    expected = labels(root)
    (root / "bolt" / before).rename(root / "bolt" / after)
    assert labels(root) == expected
    said = [notice for notice in find_set(root).notices if "images are normal" in notice]
    assert len(said) == (0 if after == "Train" else 1)


def test_a_source_one_folder_too_high_and_a_stray_folder_are_named(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path / "up" / "parts")
    for layout in ("auto", "mvtec"):
        with pytest.raises(ValueError, match=f"did you mean {root}"):
            find_set(tmp_path / "up", layout=layout)
    make_visa(tmp_path / "higher" / "visa")
    with pytest.raises(ValueError, match=r"did you mean .*higher/visa"):
        find_set(tmp_path / "higher")
    (root / "bolt/train/good/.ipynb_checkpoints").mkdir()
    (root / "bolt/train/good/Thumbs.db").write_bytes(b"x")
    stray = root / "bolt/train/good/sub"
    stray.mkdir()
    assert find_set(root).notices == (f"{stray}: left out, a folder beside images",)
    save(stray / "000.png", rgb(0))
    with pytest.raises(ValueError, match=f"mixes layouts: .*{stray} lies beside images; move it away"):
        find_set(root)


def test_masks_of_other_names_are_found(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path / "parts")
    folder = root / "bolt/ground_truth/bent"
    for ending in ("_GT", "-mask", "_Mask", ""):
        for path in folder.iterdir():
            path.rename(folder / f"{path.stem[:3]}{ending}.png")
        assert all(sample.mask for sample in find_set(root).source.samples if sample.anomalous)
    shutil.copy(folder / "000.png", folder / "000_mask.png")
    found = find_set(root)
    assert found.notices == (f"{folder}: 000_mask.png is the mask of 000; 000.png left out",)
    for path in (*folder.glob("000*"), folder / "001.png"):
        path.rename(folder / f"x{path.name}")
    with pytest.raises(ValueError, match=r"2 images have no mask .*bent/000\.png, .*bent/001\.png; add them"):
        find_set(root)


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_defect_may_lack_all_its_masks(tmp_path: Path, folder: str) -> None:
    root = make_mvtec(tmp_path / "parts")
    save(root / "bolt/test/cut/000.png", rgb(40))
    if folder == "empty":
        (root / "bolt/ground_truth/cut").mkdir()
    found = find_set(root)
    (said,) = found.notices
    assert "ground_truth/cut: no masks" in said
    assert "pixel metrics leave them out" in said
    marked = {sample.defect: sample.mask is not None for sample in found.source.samples if sample.split == "test"}
    assert marked == {"good": False, "bent": True, "cut": False}


def test_plain_images_that_are_read_as_depth_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Gray photographs would be taken for distances without a word."""
    root = tmp_path / "parts"
    for part, name in (("train", "0"), ("train", "1"), ("test", "2")):
        save(root / "bolt" / part / "good" / f"{name}.png", rgb(int(name))[..., 0])
    options = ["--target", str(tmp_path / "set"), "--modality", "depth=depth:mm", "--no-audit"]
    assert shards_command.main([str(root), *options]) == 0
    assert "one image a sample, read as depth since --modality depth says so" in capsys.readouterr().out


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path / "parts")
    for path in (root / "bolt/train/good").iterdir():
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(ValueError, match=r"only files of type \.heic; read are \.bmp, \.gif"):
        find_set(root)


@pytest.mark.parametrize("suffix", [".bmp", ".webp", ".gif"])
def test_further_types_are_written_as_png(tmp_path: Path, suffix: str) -> None:
    root = make_mvtec(tmp_path / "parts")
    shown = rgb(60) // 64 * 64
    for path in (root / "bolt/test/good").iterdir():
        path.unlink()
    file = root / f"bolt/test/good/a{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    if suffix == ".gif":
        options = {"save_all": True, "append_images": [Image.fromarray(rgb(61))]}
    Image.fromarray(shown).save(file, **options)
    index = write(root)
    sample = next(sample for sample in index.samples if sample.source == f"bolt/test/good/a{suffix}")
    decoded = decode_image(stored(root, sample.images["rgb"]), ".png", "x")
    np.testing.assert_array_equal(decoded, np.asarray(Image.open(file).convert("RGB")))
    assert any("first frame" in notice for notice in find_set(root).notices) == (suffix == ".gif")
    converted = file.read_bytes()
    for format_ in ("PNG", "JPEG", "TIFF"):  # of that name: the bytes tell what it is, here as in prediction
        Image.fromarray(shown).save(file, format=format_, quality=90)
        read = SourceFile.of(file)
        np.testing.assert_array_equal(decode_image(read.read(), read.suffix, "x"), np.asarray(Image.open(file)))
        np.testing.assert_array_equal(_decoded(file, "x")[0], np.asarray(Image.open(file)))
    file.write_bytes(converted)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=rf"a\{suffix}: does not open as {suffix[1:].upper()}"):
        SourceFile.of(file).read()


NAMES = ["正常 1", "異常 1", "ü", "a b", "a_b", "a-b", "a.b", "50%", "<b>x<", "tab\there", "e\u0301", "\u00e9"]


def test_keys_keep_the_names_of_files(tmp_path: Path) -> None:
    root = tmp_path / "parts"
    for number, name in enumerate(NAMES):
        save(root / "ネジ-1/train/good" / f"{name}.png", rgb(number))
    index = write(root)
    keys = {sample.source: sample.key for sample in index.samples}
    assert keys["ネジ-1/train/good/正常 1.png"] == "ネジ%2D1-train-good-正常%201"
    assert keys["ネジ-1/train/good/a-b.png"] == "ネジ%2D1-train-good-a-b"
    assert set(keys) == {f"ネジ-1/train/good/{name}.png" for name in NAMES}
    alone = tmp_path / "alone"
    save(alone / "ネジ-1/train/good/a_b.png", rgb(4))
    assert write(alone).samples[0].key == keys["ネジ-1/train/good/a_b.png"] == "ネジ%2D1-train-good-a_b"
    assert verify_folder(tmp_path / "parts_shards", progress=False) == []
    assert load_index(tmp_path / "parts_shards") == index


HALF = np.where(mask() > 0, 255, np.random.default_rng(1).integers(0, 9, mask().shape)).astype(np.uint8)


def palette(*colours: int) -> Image.Image:
    image = Image.frombytes("P", (16, 12), (mask() > 0).astype(np.uint8).tobytes())
    image.putpalette([*colours, *[0] * (768 - len(colours))])
    return image


def merged(mode: str, *planes: np.ndarray) -> Image.Image:
    return Image.merge(mode, [Image.fromarray(plane) for plane in planes])


NONE = mask() * 0
GOOD_MASKS: dict[str, Image.Image] = {
    "one bit": Image.fromarray(mask()).convert("1"),
    "0 and 1": Image.fromarray(mask() // 255),
    "colour": merged("RGB", mask(), mask(), mask()),
    "alpha alone": merged("RGBA", NONE, NONE, NONE, mask()),
    "grey and alpha": merged("LA", NONE, mask()),
    "numbers under white": palette(255, 255, 255, 255, 0, 0),
    "numbers under black": palette(0, 0, 0, 0, 0, 0),
}
ODD_MASKS: dict[str, tuple[Image.Image, str]] = {
    "empty": (Image.fromarray(NONE), "marks nothing of an anomalous image"),
    "full": (Image.fromarray(NONE + 255), "marks 100% of its image"),
    "inverted": (Image.fromarray(255 - mask()), r"marks 92\.2% of its image \(inverted"),
    "noisy background": (Image.fromarray(HALF), "by values below half of its largest, 255"),
    "red on white": (merged("RGB", NONE + 255, 255 - mask(), 255 - mask()), "marks 100% of its image"),
}


@pytest.mark.parametrize("case", GOOD_MASKS)
def test_masks_are_understood(tmp_path: Path, case: str) -> None:
    root = make_mvtec(tmp_path / "parts")
    GOOD_MASKS[case].save(root / "bolt/ground_truth/bent/000_mask.png")
    sample = next(sample for sample in write(root).samples if sample.source == "bolt/test/bent/000.png")
    np.testing.assert_array_equal(decode_mask_pixels(stored(root, sample.mask), ".png", "x"), mask() > 0)


@pytest.mark.parametrize(("format_", "quality"), [("JPEG", 75), ("JPEG", 95), ("WEBP", 75)])
def test_a_mask_with_loss_is_one_whatever_its_name_says(tmp_path: Path, format_: str, quality: int) -> None:
    root = make_mvtec(tmp_path / "parts")
    file = root / "bolt/ground_truth/bent/000_mask.png"
    file.unlink()
    large = np.kron(mask(), np.ones((8, 8), dtype=np.uint8))
    large[3:-3, 3:-3] |= np.roll(large, 5, axis=(0, 1))[3:-3, 3:-3]  # edges that are no block's
    Image.fromarray(large).save(
        file if format_ == "JPEG" else file.with_suffix(".webp"), format=format_, quality=quality
    )
    save(root / "bolt/test/bent/000.png", rgb(0, *large.shape))
    sample = next(sample for sample in write(root).samples if sample.source == "bolt/test/bent/000.png")
    wrong = decode_mask_pixels(stored(root, sample.mask), ".png", "x") != (large > 0)
    assert wrong.mean() < 0.01


@pytest.mark.parametrize("case", ODD_MASKS)
def test_masks_that_cannot_be_meant_are_refused_unless_allowed(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_mvtec(tmp_path / "parts")
    image, message = ODD_MASKS[case]
    image.save(root / "bolt/ground_truth/bent/000_mask.png")
    with pytest.raises(ValueError, match=f"bent/000_mask.png .*{message}.*--allow-odd-masks"):
        write(root)
    index = write(root, allow_odd_masks=True)
    assert len(index.samples) == 6
    assert any("000_mask.png marks" in said for said in caplog.messages)


def test_a_mask_of_a_normal_image_and_one_of_probabilities(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path / "parts")
    save(root / "bolt/ground_truth/good/000_mask.png", mask())
    (root / "bolt/ground_truth/bent/000_mask.png").unlink()
    likely = np.where(mask() > 0, 0.9, 0.03).astype(np.float32)
    tifffile.imwrite(root / "bolt/ground_truth/bent/000_mask.tif", likely)
    with pytest.raises(ValueError, match="2 of 6 samples cannot be written") as caught:
        write(root)
    lines = str(caught.value).split("\n")
    assert "marks 7.81% of a normal image" in lines[1] + lines[2]
    assert "92% by values below half of its largest, 0.9 (a background that is not 0?)" in lines[1] + lines[2]
    assert not (tmp_path / "parts_shards").exists()


def test_the_same_pixels_to_train_and_to_test_are_refused_unless_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_mvtec(tmp_path / "parts")
    good, test = root / "bolt/train/good", root / "bolt/test"
    Image.open(good / "001.png").save(test / "good/000.png", compress_level=0)  # other bytes, the same pixels
    shutil.copy(good / "002.png", test / "bent/000.png")
    shutil.copy(good / "002.png", good / "900.png")
    with pytest.raises(ValueError, match="2 test samples have the pixels of one that is trained") as caught:
        write(root)
    assert f"{good / '001.png'} (train good) = {test / 'good/000.png'} (test good)" in str(caught.value)
    assert not (tmp_path / "parts_shards").exists()
    index = write(root, allow_duplicates=True)
    assert index.duplicates is not None
    assert (index.duplicates.exact, index.duplicates.trained_and_tested) == (3, 2)
    assert load_index(tmp_path / "parts_shards").duplicates == index.duplicates
    assert any("1 of these are normal and anomalous at once" in said for said in caplog.messages)
    blank = np.zeros((12, 16, 3), dtype=np.uint8)
    clean = make_mvtec(tmp_path / "clean")
    for part in ("train/good/000.png", "test/good/000.png"):
        save(clean / "bolt" / part, blank)
    assert write(clean).duplicates == type(index.duplicates)()
    assert any("2 samples show nothing" in said for said in caplog.messages)


def broken(root: Path) -> None:
    for part in ("train/good/001", "test/good/000", "test/bent/001"):
        (root / "bolt" / f"{part}.png").write_bytes(b"no image")


@pytest.mark.parametrize("workers", [0, 2])
def test_all_broken_files_are_listed_or_skipped(tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    root = make_mvtec(tmp_path / "parts")
    broken(root)
    with pytest.raises(ValueError, match="3 of 6 samples cannot be written") as caught:
        write(root)
    listed = [line.split(": ")[0] for line in str(caught.value).split("\n")[1:4]]
    assert listed == [f"  {root}/bolt/{part}.png" for part in ("train/good/001", "test/bent/001", "test/good/000")]
    index = write(root, on_error="skip")
    assert [sample.source for sample in index.samples] == [
        "bolt/train/good/000.png",
        "bolt/train/good/002.png",
        "bolt/test/bent/000.png",
    ]
    assert verify_folder(tmp_path / "parts_shards", progress=False) == []
    assert any(said.count("does not open") == 3 for said in caplog.messages)
    for path in (root / "bolt/train/good").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="parts/bolt: none of its training samples can be written"):
        write(root, on_error="skip", overwrite=True)


def test_an_interruption_is_one_line_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After broken files were passed over, too: finished shards know which samples they left out."""
    root = make_mvtec(tmp_path / "parts")
    broken(root)
    packed: list[str] = []
    stop_before = [""]

    def pack(work: Work, **options: bool) -> PackedSample | object:
        if work[1].key == stop_before[0]:
            raise KeyboardInterrupt
        packed.append(work[1].key)
        return pack_or_say(work, **options)

    monkeypatch.setattr(shards_module, "pack_or_say", pack)
    argv = [str(root), "--target", str(tmp_path / "out/set"), "--on-error", "skip", "--calibration-fraction", "0"]
    for key, kept in (("bolt-train-good-000", "; nothing is written"), ("bolt-test-bent-000", "shards are kept")):
        stop_before[0] = key
        assert shards_command.main([*argv, "--shard-mb", "0.002"]) == 130
        said = capsys.readouterr().err
        assert "interrupted" in said
        assert kept in said
        assert not (tmp_path / "out/set").exists()
    packed.clear()
    stop_before[0] = ""
    assert shards_command.main([*argv, "--shard-mb", "0.002"]) == 0
    assert "bolt-train-good-000" not in packed
    assert len(load_index(tmp_path / "out/set").samples) == 3
    assert verify_folder(tmp_path / "out/set", progress=False) == []


def test_an_interruption_after_the_last_shard_says_that_they_are_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("unimmad.audit.brief.brief_audit", interrupted)
    target, source = tmp_path / "set", str(make_mvtec(tmp_path / "parts"))
    assert shards_command.main([source, "--target", str(target)]) == 0
    said = capsys.readouterr().out
    assert "the audit was interrupted; the shards are complete" in said
    assert f"next: unimmad train --recipe drawn_search --data {target}" in said
    monkeypatch.setattr(shards_command, "_print_summary", interrupted)
    assert shards_command.main([source, "--target", str(target), "--overwrite"]) == 130
    assert capsys.readouterr().err.endswith(f"interrupted; the shards in {target} are complete\n")
    assert verify_folder(target, progress=False) == []


def test_what_is_given_as_shards(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path / "parts")
    write(root)
    target = tmp_path / "parts_shards"
    tests: list[tuple[Path, str]] = [
        (target / "index.json", f"is a file, not a shard folder; give {target}"),
        (root / "bolt/train/good/000.png", "is a file, not a shard folder; give the folder that"),
        (tmp_path, f"did you mean {target}"),
    ]
    for path, message in tests:
        with pytest.raises(ValueError, match=message):
            load_index(path)


def test_the_reports_header_counts_copies_and_missing_masks(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path / "parts")
    write(root)
    plain = ShardSet.open([tmp_path / "parts_shards"])
    assert (_duplicates(plain), _without_masks(plain, "test")) == ("", "")
    shutil.copy(root / "bolt/train/good/001.png", root / "bolt/test/good/000.png")
    for number in range(2):
        save(root / "bolt/test/cut" / f"{number}.png", rgb(40 + number))
    write(root, overwrite=True, allow_duplicates=True)
    found = ShardSet.open([tmp_path / "parts_shards"])
    assert _duplicates(found) == "1 samples have the pixels of another one, 1 of them test images that are trained on"
    assert _without_masks(found, "test") == "2 of parts/bolt anomalous samples, which pixel metrics leave out"
