"""verify: whatever is done to a shard folder is found, and an untouched one passes."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disk_sets import make_multimodal, make_mvtec

from unimmad.data.index import INDEX_NAME
from unimmad.data.layouts import find_set
from unimmad.data.writing.shards import write_shards
from unimmad.data.writing.verify import verify_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sets = [find_set(make(tmp_path / name)).source for name, make in (("food", make_multimodal), ("parts", make_mvtec))]
    write_shards(sets, tmp_path / "shards", progress=False)
    return tmp_path / "shards"


def edit_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    index = json.loads((folder / INDEX_NAME).read_text())
    change(index)
    (folder / INDEX_NAME).write_text(json.dumps(index))


def rewrite_shard(folder: Path, change: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> None:
    """The last shard with other members, and an index that holds its new size and sha256 for right."""
    path = folder / "test-000000.tar"
    with tarfile.open(path) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in change(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = path.read_bytes()
    facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_index(folder, lambda index: index["shards"][1].update(facts))


def test_an_untouched_folder_passes(folder: Path) -> None:
    assert verify_folder(folder, progress=False) == []


def test_a_missing_a_cut_and_an_altered_shard(folder: Path) -> None:
    path = folder / "test-000000.tar"
    whole = path.read_bytes()
    path.unlink()
    assert verify_folder(folder, progress=False) == [f"{path}: is missing"]
    path.write_bytes(whole[:-512])
    assert verify_folder(folder, progress=False) == [
        f"{path}: has {len(whole) - 512} bytes, the index says {len(whole)}: it was cut short or changed"
    ]
    path.write_bytes(whole[:2000] + bytes([whole[2000] ^ 1]) + whole[2001:])
    assert f"{path}: its sha256 is not the index's: it was altered" in verify_folder(folder, progress=False)


def test_a_shard_that_is_not_listed(folder: Path) -> None:
    (folder / "train-000009.tar").write_bytes(b"")
    assert verify_folder(folder, progress=False) == [f"{folder / 'train-000009.tar'}: is not in the index"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda index: index["samples"].pop(0), "lists 4 samples in it, and counts 5"),
        (lambda index: index["samples"].pop(0), "holds food/bagel-train-good-000.0.png, which no sample"),
        (lambda index: index["shards"][0].update(samples=9), "lists 5 samples in it, and counts 9"),
        (lambda index: index["samples"][0]["images"]["rgb"].update(offset=0), "good-000.0.png is not where"),
        (lambda index: index["samples"][0]["images"]["rgb"].update(length=3), "good-000.0.png is not where"),
        (lambda index: index["samples"][0].update(class_name="bun"), "says class_name is 'bagel', the index 'bun'"),
        (lambda index: index["samples"][0].update(key="other"), "food/other.json is missing"),
        (lambda index: index["samples"][0].update(images=index["samples"][1]["images"]), "is a member of 2 samples"),
    ],
)
def test_an_index_that_says_something_else(folder: Path, change: Any, problem: str) -> None:
    edit_index(folder, change)
    assert any(problem in found for found in verify_folder(folder, progress=False))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda members: [*members, members[0]], "times"),
        (lambda members: [item for item in members if "json" not in item[0]], "good-000.json is missing"),
        (lambda members: [*members, ("food/more.0.png", b"x")], "holds food/more.0.png, which no sample"),
        (lambda members: [(name, b"[]" if "json" in name else data) for name, data in members], "is not a JSON object"),
        (lambda members: members[::-1], "is not where the index says"),
    ],
)
def test_a_shard_with_other_members(folder: Path, change: Any, problem: str) -> None:
    rewrite_shard(folder, change)
    problems = verify_folder(folder, progress=False)
    assert any(problem in found for found in problems)
    assert not any("sha256" in found for found in problems)


def test_what_is_no_tar(folder: Path) -> None:
    data = b"nothing of a tar" * 2000
    (folder / "test-000000.tar").write_bytes(data)
    facts = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_index(folder, lambda index: index["shards"][1].update(facts))
    assert any("cannot be read as a tar file" in found for found in verify_folder(folder, progress=False))


@pytest.mark.parametrize("name", ["../train-000000.tar", "a/b.tar", ".hidden.tar", "x$(touch y).tar", "index.json"])
def test_an_index_names_no_path_outside_its_folder(folder: Path, name: str) -> None:
    edit_index(folder, lambda index: index["shards"][0].update(name=name))
    with pytest.raises(ValueError, match=r"index\.json: shards\.0\.name: String should match"):
        verify_folder(folder, progress=False)


def test_a_sample_of_an_unlisted_shard_or_set(folder: Path) -> None:
    edit_index(folder, lambda index: index["samples"][0].update(shard=7))
    with pytest.raises(
        ValueError, match="sample bagel-train-good-000 lies in shard 7 of dataset food, which is not listed"
    ):
        verify_folder(folder, progress=False)
