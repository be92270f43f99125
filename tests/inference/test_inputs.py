from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from unimmad.data.layouts.scan import Notices
from unimmad.inference.inputs import InputSample, _with_names_that_differ, find_samples, sample_of_modalities

KNOWN = ("rgb", "depth")


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def found(*paths: Path):
    return find_samples(paths, KNOWN, Notices())


def test_files_and_folders_of_images_are_single_images(tmp_path):
    touch(tmp_path / "a.png", tmp_path / "more/b.jpg", tmp_path / "more/c.TIFF", tmp_path / "more/.hidden.png")
    samples = found(tmp_path / "a.png", tmp_path / "more")
    assert [(sample.name, sample.images) for sample in samples] == [
        ("a", tmp_path / "a.png"),
        ("more/b", tmp_path / "more/b.jpg"),
        ("more/c", tmp_path / "more/c.TIFF"),
    ]


def test_a_folder_of_modality_folders_joins_files_of_one_name(tmp_path):
    touch(tmp_path / "x/rgb/1.png", tmp_path / "x/depth/1.npy", tmp_path / "x/rgb/2.png", tmp_path / "x/gt/1.png")
    first, second = found(tmp_path / "x")
    assert first.name == "x/1"
    assert first.images == {"rgb": tmp_path / "x/rgb/1.png", "depth": tmp_path / "x/depth/1.npy"}
    assert second.images == {"rgb": tmp_path / "x/rgb/2.png"}


def test_equal_names_are_told_apart(tmp_path):
    touch(tmp_path / "a/good/1.png", tmp_path / "b/good/1.png")
    assert [sample.name for sample in found(tmp_path / "a/good", tmp_path / "b/good")] == ["good/1", "good/1-2"]


def test_bytes_that_are_no_utf8_are_written_out_and_names_still_differ(tmp_path):
    folder = tmp_path / os.fsdecode(b"f\xfc")
    touch(folder / os.fsdecode(b"caf\xe9.png"), folder / r"caf\xe9.png")
    first, second = found(folder)
    assert {first.name, second.name} == {r"f\xfc/caf\xe9", r"f\xfc/caf\xe9-2"}
    assert {os.fsencode(first.images.name), os.fsencode(second.images.name)} == {b"caf\xe9.png", rb"caf\xe9.png"}
    assert sample_of_modalities([f"rgb={first.images}"]).name == r"caf\xe9"


def test_files_given_twice_count_once_and_that_is_said(tmp_path):
    touch(tmp_path / "x" / "a.png", tmp_path / "y" / "rgb" / "1.png", tmp_path / "y" / "depth" / "1.png")
    (tmp_path / "link").symlink_to(tmp_path / "y")
    (tmp_path / "x" / "b.png").symlink_to(tmp_path / "x" / "a.png")
    notices = Notices()
    paths = [tmp_path / "x", tmp_path / "x" / ".." / "x", tmp_path / "x" / "a.png", tmp_path / "y", tmp_path / "link"]
    assert [sample.name for sample in find_samples(paths, KNOWN, notices)] == ["x/a", "y/1"]
    assert notices.lines == ["5 samples were given more than once, by the same files: each counts once"]
    assert len(find_samples([tmp_path / "y", tmp_path / "y" / "rgb"], KNOWN, Notices())) == 2, "another sample"
    find_samples([tmp_path / "y", tmp_path / "y"], KNOWN, notices)
    assert notices.lines[-1] == "1 sample was given more than once, by the same files: each counts once"


def test_many_equal_names_take_time_that_grows_with_their_number(tmp_path):
    alike = [InputSample("1", tmp_path / "1.png")] * 10_000
    began = time.process_time()
    names = [sample.name for sample in _with_names_that_differ(alike)]
    assert names[:2] == ["1", "1-2"]
    assert names[-1] == "1-10000"
    assert len(set(names)) == 10_000
    assert time.process_time() - began < 5


def test_files_of_other_types_are_left_out_and_said(tmp_path):
    touch(tmp_path / "x/1.png", tmp_path / "x/notes.txt")
    notices = Notices()
    assert len(find_samples([tmp_path / "x"], KNOWN, notices)) == 1
    assert "1 files of type .txt left out" in notices.lines[0]


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        ([], "gone.png", "gone.png does not exist"),
        (["a.heic"], "a.heic", r"a.heic: type .heic is not read; use one of .*\.png"),
        (["x/readme.txt"], "x", "x holds no image"),
        (["x/thermal/1.png"], "x", r"folders thermal, and none is a modality that is known \(rgb, depth\)"),
        (["x/rgb/1.png", "x/thermal/1.png"], "x", "thermal is not a known modality; known are rgb, depth"),
        (["x/rgb/readme.txt"], "x", "x holds no image in rgb"),
        (["x/1.png", "x/1.jpg"], "x", "name one sample twice"),
        (["x/rgb/1.png", "x/depth/1_range.png"], "x", "must be called alike in all modalities, but .* 1_range"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(tmp_path, files, given, message):
    touch(*(tmp_path / file for file in files))
    with pytest.raises(ValueError, match=message):
        found(tmp_path / given)


def test_one_sample_by_its_modalities(tmp_path):
    touch(tmp_path / "a.png", tmp_path / "b.npy")
    sample = sample_of_modalities([f"rgb={tmp_path / 'a.png'}", f"depth={tmp_path / 'b.npy'}"])
    assert sample.name == "a"
    assert sample.images == {"rgb": tmp_path / "a.png", "depth": tmp_path / "b.npy"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rgb"], "write it as NAME=FILE"),
        (["=a.png"], "write it as NAME=FILE"),
        (["rgb={0}/a.png", "rgb={0}/a.png"], "rgb is given twice"),
        (["rgb={0}/gone.png"], "gone.png does not exist"),
    ],
)
def test_other_words_are_refused(tmp_path, words, message):
    touch(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        sample_of_modalities([word.format(tmp_path) for word in words])
