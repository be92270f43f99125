import hashlib
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from disk_sets import make_multimodal, make_mvtec, mask, rgb, save

from unimmad.data.decode import decode_mask_pixels
from unimmad.data.index import Index, load_index
from unimmad.data.layouts import find_set
from unimmad.data.layouts.source_set import SourceSet
from unimmad.data.writing import shards as shards_module
from unimmad.data.writing.packing import PackedSample, Work, pack
from unimmad.data.writing.replace_folder import replaced_folder
from unimmad.data.writing.shards import write_shards
from unimmad.data.writing.verify import verify_folder


def found(root: Path) -> SourceSet:
    return find_set(root).source


def write(target: Path, *roots: Path, **options: object) -> Index:
    return write_shards([found(root) for root in roots], target, progress=False, **options)  # type: ignore[arg-type]


def test_members_lie_where_the_index_says(tmp_path: Path) -> None:
    root = make_multimodal(tmp_path / "food")
    index = write(tmp_path / "shards", root)
    assert load_index(tmp_path / "shards") == index
    assert [shard.name for shard in index.shards] == ["train-000000.tar", "test-000000.tar"]
    for shard in index.shards:
        data = (tmp_path / "shards" / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
    cut = next(sample for sample in index.samples if sample.anomalous)
    data = (tmp_path / "shards" / index.shards[cut.shard].name).read_bytes()
    assert cut.mask is not None
    for member, path in (
        (cut.images["rgb"], "rgb/000.png"),
        (cut.images["depth"], "depth/000.png"),
        (cut.mask, "gt/000.png"),
    ):
        original = (root / "bagel/test/cut" / path).read_bytes()
        assert data[member.offset : member.offset + member.length] == original


def test_webdataset_reads_them_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "shards", make_multimodal(tmp_path / "food"), make_mvtec(tmp_path / "parts"))
    samples = list(wds.WebDataset(str(tmp_path / "shards/test-000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [
        "food/bagel-test-cut-000",
        "food/bagel-test-good-000",
        "parts/bolt-test-bent-000",
        "parts/bolt-test-bent-001",
        "parts/bolt-test-good-000",
    ]
    assert {name for name in samples[0] if not name.startswith("__")} == {
        "json",
        "0.png",
        "1.png",
        "mask.png",
    }
    about = json.loads(samples[0]["json"])
    assert (about["dataset"], about["class_name"], about["defect"]) == ("food", "bagel", "cut")
    assert [modality["name"] for modality in about["modalities"]] == ["rgb", "depth"]
    assert "mask.png" not in samples[1]


def test_same_input_same_bytes(tmp_path: Path) -> None:
    root = make_multimodal(tmp_path / "food")
    assert write(tmp_path / "a", root) == write(tmp_path / "b", root)
    for name in ("index.json", "train-000000.tar", "test-000000.tar"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_processes_give_the_same_bytes(tmp_path: Path) -> None:
    roots = make_multimodal(tmp_path / "food"), make_mvtec(tmp_path / "parts")
    alone = write(tmp_path / "alone", *roots, shard_bytes=8000)
    assert len(alone.shards) > 3
    assert write(tmp_path / "together", *roots, shard_bytes=8000, workers=2) == alone
    for name in ("index.json", *(shard.name for shard in alone.shards)):
        assert (tmp_path / "together" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_an_error_in_a_process_is_one_line(tmp_path: Path) -> None:
    root = make_multimodal(tmp_path / "food")
    message = break_image(root)
    with pytest.raises(ValueError, match=message) as caught:
        write(tmp_path / "shards", root, workers=2)
    assert "\n" not in str(caught.value)


class Interrupted:
    """Writing that is broken off before some sample, as by Ctrl-C; counts the samples that are prepared."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prepared: list[str] = []
        self.stop_before: str | None = None
        monkeypatch.setattr(shards_module, "pack_or_say", self._pack)

    def _pack(self, work: Work, **_: object) -> PackedSample:
        if work[1].key == self.stop_before:
            raise KeyboardInterrupt
        self.prepared.append(work[1].key)
        return pack(work)

    def write(self, target: Path, root: Path, stop_before: str | None = None, **options: Any) -> list[str]:
        """The keys of the samples that were prepared."""
        self.prepared, self.stop_before = [], stop_before
        if stop_before is None:
            write(target, root, **{"shard_bytes": 4000, **options})
        else:
            with pytest.raises(KeyboardInterrupt):
                write(target, root, **{"shard_bytes": 4000, **options})
            assert not (target / "index.json").exists()
        return self.prepared


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Interrupted:
    return Interrupted(monkeypatch)


def test_an_interrupted_write_goes_on_where_it_was(tmp_path: Path, interrupted: Interrupted) -> None:
    root = make_mvtec(tmp_path / "parts")
    every = interrupted.write(tmp_path / "whole" / "set", root)
    assert len(every) == 6
    target = tmp_path / "out" / "set"
    # Four shards at four samples: each is closed when the next one does not fit.
    assert interrupted.write(target, root, stop_before=every[4]) == every[:4]
    assert [path.name for path in target.parent.iterdir()] == [".set.writing"]
    rest = interrupted.write(target, root)
    assert 0 < len(rest) < 4
    assert rest == every[-len(rest) :]
    assert [path.name for path in target.parent.iterdir()] == ["set"]
    for path in (tmp_path / "whole" / "set").iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes()
    assert verify_folder(target, progress=False) == []


@pytest.mark.parametrize("change", ["touched", "another", "removed", "shard size", "altered"])
def test_what_changed_since_is_written_again(tmp_path: Path, interrupted: Interrupted, change: str) -> None:
    root, target = make_mvtec(tmp_path / "parts"), tmp_path / "out" / "set"
    every = interrupted.write(tmp_path / "whole", root)
    interrupted.write(target, root, stop_before=every[5])
    image = root / "bolt/train/good/000.png"
    options = {}
    if change == "touched":
        os.utime(image, ns=(1, 1))
    elif change == "another":
        save(image, rgb(77))
    elif change == "removed":
        image.unlink()
        every = every[1:]
    elif change == "shard size":
        options = {"shard_bytes": 5000}
    else:
        with (target.parent / ".set.writing/new/train-000000.tar").open("r+b") as file:
            file.seek(600)
            file.write(b"altered")
    again = interrupted.write(target, root, **options)
    assert set(every[: 3 if change != "removed" else 2]) <= set(again)
    undisturbed = write(tmp_path / "now", root, **{"shard_bytes": 4000, **options})
    assert load_index(target) == undisturbed
    assert verify_folder(target, progress=False) == []
    assert {path.name for path in target.iterdir()} == {path.name for path in (tmp_path / "now").iterdir()}


def test_after_an_error_finished_shards_wait_for_the_corrected_file(tmp_path: Path, interrupted: Interrupted) -> None:
    root, target = make_mvtec(tmp_path / "parts"), tmp_path / "out" / "set"
    image = root / "bolt/test/good/000.png"
    whole = image.read_bytes()
    image.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"does not open .*shards are kept: the same command goes on"):
        write(target, root, shard_bytes=4000)
    image.write_bytes(whole)
    assert len(interrupted.write(target, root)) < 4
    assert verify_folder(target, progress=False) == []


def test_a_killed_swap_is_undone(tmp_path: Path) -> None:
    """The instant between moving the old set away and the new one in: the old one is found again."""
    root, target = make_mvtec(tmp_path / "parts"), tmp_path / "out" / "set"
    write(target, root)
    (tmp_path / "out" / ".set.writing").mkdir()
    target.rename(tmp_path / "out" / ".set.writing" / "old")
    break_image_of_parts = root / "bolt/test/good/000.png"
    break_image_of_parts.write_bytes(b"no image")
    with pytest.raises(ValueError, match="does not open"):
        write(target, root)
    assert verify_folder(target, progress=False) == []
    assert [path.name for path in target.parent.iterdir()] == ["set"]


def test_two_writers_of_one_target(tmp_path: Path) -> None:
    root, target = make_mvtec(tmp_path / "parts"), tmp_path / "out" / "set"
    with replaced_folder(target, overwrite=False), pytest.raises(ValueError, match="being written by another process"):
        write(target, root)
    assert (target / "index.json").exists() is False


def test_shards_are_cut_and_every_sample_is_found(tmp_path: Path) -> None:
    index = write(tmp_path / "shards", make_mvtec(tmp_path / "parts"), shard_bytes=4000)
    assert len(index.shards) > 2
    for number, shard in enumerate(index.shards):
        entries = [sample for sample in index.samples if sample.shard == number]
        assert len(entries) == shard.samples > 0
        assert len({entry.split for entry in entries}) == 1
        with tarfile.open(tmp_path / "shards" / shard.name) as tar:
            assert {entry.images["rgb"].name for entry in entries} <= set(tar.getnames())
    assert len(index.samples) == 6


def test_long_names(tmp_path: Path) -> None:
    save(tmp_path / "parts/bolt/train/good" / ("x" * 200 + ".png"), rgb(0))
    index = write(tmp_path / "shards", tmp_path / "parts")
    member = index.samples[0].images["rgb"]
    data = (tmp_path / "shards/train-000000.tar").read_bytes()
    assert data[member.offset :].startswith(b"\x89PNG")


def test_masks_of_other_types_become_png(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path / "parts")
    (root / "bolt/ground_truth/bent/000_mask.png").unlink()
    save(root / "bolt/ground_truth/bent/000_mask.npy", mask() > 0)
    index = write(tmp_path / "shards", root)
    member = next(sample.mask for sample in index.samples if sample.key == "bolt-test-bent-000")
    assert member is not None
    data = (tmp_path / "shards/test-000000.tar").read_bytes()[member.offset : member.offset + member.length]
    np.testing.assert_array_equal(decode_mask_pixels(data, ".png", "x"), mask() > 0)


def test_missing_modality(tmp_path: Path) -> None:
    root = make_multimodal(tmp_path / "food")
    (root / "bagel/test/good/depth/000.png").unlink()
    with pytest.raises(ValueError, match=r"bagel-test-good-000: depth missing beside .*--allow-missing"):
        write(tmp_path / "shards", root)
    index = write(tmp_path / "shards", root, allow_missing=True)
    assert [sorted(sample.images) for sample in index.samples if sample.key == "bagel-test-good-000"] == [["rgb"]]


def break_image(root: Path) -> str:
    (root / "bagel/test/good/rgb/000.png").write_bytes(b"no image")
    return r"good/rgb/000\.png: does not open"


def shrink_mask(root: Path) -> str:
    save(root / "bagel/test/cut/gt/000.png", mask(12, 15))
    return r"mask .*gt/000\.png is 15 x 12 .*its image .*cut/rgb/000\.png is 16 x 12"


def shrink_depth(root: Path) -> str:
    save(root / "bagel/train/good/depth/001.png", np.ones((6, 8), dtype=np.uint16))
    return r"depth/001\.png is 8 x 6 .*rgb/001\.png is 16 x 12"


def colour_depth(root: Path) -> str:
    save(root / "bagel/test/good/depth/000.png", rgb(0))
    return r"good/depth/000\.png: depth with 3 different channels"


@pytest.mark.parametrize("spoil", [break_image, shrink_mask, shrink_depth, colour_depth])
def test_bad_files_are_named_and_nothing_is_left(tmp_path: Path, spoil) -> None:  # type: ignore[no-untyped-def]
    root = make_multimodal(tmp_path / "food")
    message = spoil(root)
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "out" / "shards", root)
    assert list((tmp_path / "out").iterdir()) == []


def test_existing_target(tmp_path: Path) -> None:
    root, target = make_multimodal(tmp_path / "food"), tmp_path / "out" / "shards"
    target.mkdir(parents=True)
    write(target, root)
    with pytest.raises(ValueError, match="--overwrite"):
        write(target, root)
    write(target, make_mvtec(tmp_path / "parts"), overwrite=True)
    assert list(load_index(target).datasets) == ["parts"]
    break_image(root)
    with pytest.raises(ValueError, match="does not open"):
        write(target, root, overwrite=True)
    assert list(load_index(target).datasets) == ["parts"]
    assert [path.name for path in target.parent.iterdir()] == ["shards"]


def test_target_that_is_something_else_is_never_replaced(tmp_path: Path) -> None:
    root = make_mvtec(tmp_path / "parts")
    with pytest.raises(ValueError, match="is not a shard folder"):
        write(root, root, overwrite=True)
    assert found(root).samples


def test_sets_that_cannot_be_written(tmp_path: Path) -> None:
    parts = found(make_mvtec(tmp_path / "parts"))
    first, *others = parts.samples
    cases = [
        ([], "no dataset"),
        ([parts, parts], "2 datasets are called parts"),
        ([replace(parts, name="a/b")], "cannot name a dataset"),
        ([replace(parts, samples=(first, first))], "have the key"),
        ([replace(parts, samples=(replace(first, key="a.b"), *others))], "cuts keys at a dot"),
        ([replace(parts, samples=(replace(first, key="a/b"), *others))], "paths end at a slash"),
        ([replace(parts, samples=(replace(first, class_name="a/b"), *others))], "cannot name a class"),
        ([replace(parts, samples=(replace(first, class_name="a\udcff"), *others))], "cannot name a class"),
        (
            [replace(parts, samples=(replace(first, images={"ir": first.images["rgb"]}),))],
            "modality ir is none",
        ),
        ([replace(parts, samples=parts.samples[3:])], "no normal training image"),
        (
            [replace(parts, samples=(replace(first, defect="bent", key="x"), *others))],
            "in the training split",
        ),
    ]
    for sets, message in cases:
        with pytest.raises(ValueError, match=message):
            write_shards(sets, tmp_path / "shards", progress=False)
    assert not (tmp_path / "shards").exists()
