"""Files that change, go away or can't be written while they are in use: said in one line, nothing wrong is kept."""

import errno
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disk_sets import gray, save

from unimmad.data.index import INDEX_NAME, Index, load_index
from unimmad.data.layouts import find_set
from unimmad.data.reading.shard_set import CorruptSampleError, ShardSet
from unimmad.data.writing import shards as writing
from unimmad.data.writing import verify as verifying
from unimmad.data.writing.shards import write_shards
from unimmad.data.writing.verify import verify_folder

SAMPLES = 6
SHARD_BYTES = 4096
"""Two samples."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for number in range(SAMPLES):
        save(tmp_path / "parts" / "x" / "train" / "good" / f"{number}.npy", gray(number))
    return tmp_path / "parts"


def write(source: Path, target: Path) -> Index:
    return write_shards([find_set(source).source], target, shard_bytes=SHARD_BYTES, progress=False)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def at_shard(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Have ``act`` called before the ``number``-th shard (from 0) is written."""
    calls: list[Path] = []
    original = writing._write_shard

    def write_shard(path: Path, samples: Any) -> Any:
        calls.append(path)
        if len(calls) == number + 1:
            act()
        return original(path, samples)

    monkeypatch.setattr(writing, "_write_shard", write_shard)


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_a_source_file_replaced_before_its_shard_is_noted_is_read_again(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note says how files were when they were read, not how they are when their shard is finished."""
    with monkeypatch.context() as patched:
        at_shard(patched, 0, lambda: save(source / "x" / "train" / "good" / "0.npy", gray(100)))
        original = writing.ShardNotes.add

        def add(self: Any, *arguments: Any) -> None:
            original(self, *arguments)
            raise KeyboardInterrupt

        patched.setattr(writing.ShardNotes, "add", add)
        with pytest.raises(KeyboardInterrupt):
            write(source, tmp_path / "shards")
    write(source, tmp_path / "shards")
    write(source, tmp_path / "afresh")
    assert content(tmp_path / "shards") == content(tmp_path / "afresh")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EIO])
def test_a_target_that_stops_taking_files_is_one_line_and_can_be_continued(
    code: int, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        at_shard(patched, 2, raising(OSError(code, os.strerror(code), "somewhere")))
        with pytest.raises(ValueError, match=rf"^cannot write .*shards \({os.strerror(code)}\); .*\(2 finished shards"):
            write(source, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
    write(source, tmp_path / "shards")
    assert verify_folder(tmp_path / "shards", progress=False) == []


def test_a_target_that_lets_nothing_be_removed_either_keeps_the_first_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = OSError(errno.EROFS, os.strerror(errno.EROFS), "somewhere")

    def read_only(*_: Any, **__: Any) -> None:
        raise refusal

    with monkeypatch.context() as patched:

        def act() -> None:
            patched.setattr(Path, "unlink", read_only)
            patched.setattr(os, "unlink", read_only)
            patched.setattr(os, "rmdir", read_only)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")

        at_shard(patched, 0, act)
        with pytest.raises(ValueError, match=r"^cannot write .*No space left on device.*another --target$"):
            write(source, tmp_path / "shards")
    write(source, tmp_path / "shards")


@pytest.mark.parametrize("change", ["removed", "unreadable"])
def test_a_source_file_that_goes_away_is_named(
    change: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = source / "x" / "train" / "good" / "4.npy"

    plain_open = Path.open

    def unreadable(self: Path, *argv: Any, **named: Any) -> Any:
        if self == gone:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return plain_open(self, *argv, **named)

    act = gone.unlink if change == "removed" else lambda: monkeypatch.setattr(Path, "open", unreadable)
    at_shard(monkeypatch, 0, act)
    with pytest.raises(ValueError, match=r"4\.npy: cannot be read \((No such file|Permission denied).*finished shards"):
        write(source, tmp_path / "shards")


def test_verify_goes_on_behind_a_shard_that_goes_away(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(source, tmp_path / "shards")
    last = tmp_path / "shards" / "train-000002.tar"
    last.write_bytes(last.read_bytes()[:-1] + b"x")
    original = verifying.sha256_of

    def vanished(path: Path) -> str:
        if path.name == "train-000000.tar":
            path.unlink()
        return original(path)

    monkeypatch.setattr(verifying, "sha256_of", vanished)
    problems = verify_folder(tmp_path / "shards", progress=False)
    assert [problem.split(":")[0].split("/")[-1] for problem in problems[:2]] == [
        "train-000000.tar",
        "train-000002.tar",
    ]
    assert "cannot be read (No such file or directory)" in problems[0]


def _swapped(path: Path) -> None:
    """The same members of the same lengths in another order: another image lies where each one was."""
    with tarfile.open(path) as tar:
        members = [(info.name, tar.extractfile(info).read()) for info in tar.getmembers()]  # type: ignore[union-attr]
    half = len(members) // 2
    other = path.with_name("other.tar")
    with tarfile.open(other, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in members[half:] + members[:half]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert other.stat().st_size == path.stat().st_size
    other.replace(path)


def test_a_shard_replaced_while_in_use_is_not_read_as_the_old_one(source: Path, tmp_path: Path) -> None:
    """A shard that was opened before goes on being read as it was; one that is opened later is refused."""
    index = write(source, tmp_path / "shards")
    assert len(index.shards) == 3
    shards = ShardSet.open([tmp_path / "shards"])
    refs = shards.classes("train")["parts/x"]
    before = [ref for ref in refs if ref.entry.shard == 0]
    first = shards.read(before[0], 8)
    for shard in index.shards:
        _swapped(tmp_path / "shards" / shard.name)
    assert shards.read(before[0], 8).images_MCHW.equal(first.images_MCHW)
    later = [ref for ref in refs if ref.entry.shard == 1]
    with pytest.raises(
        CorruptSampleError, match=r"train-000001\.tar: .*is not where the index says; was the shard repl"
    ):
        shards.read(later[0], 8)


def test_long_names_and_letters_beyond_ascii_are_where_the_index_says(tmp_path: Path) -> None:
    name = "\U0001f600é" * 30
    for number in range(2):
        save(tmp_path / name / "x" / "train" / "good" / f"{'n' * 120}{number}.npy", gray(number))
    write(tmp_path / name, tmp_path / "shards")
    shards = ShardSet.open([tmp_path / "shards"])
    for refs in shards.classes("train").values():
        for ref in refs:
            shards.read(ref, 8)


def test_an_overwritten_folder_is_whole_for_whoever_opens_it(source: Path, tmp_path: Path) -> None:
    write(source, tmp_path / "shards")
    held = ShardSet.open([tmp_path / "shards"])
    save(source / "x" / "train" / "good" / "0.npy", gray(7))
    sets = [find_set(source).source]
    write_shards(sets, tmp_path / "shards", shard_bytes=SHARD_BYTES, progress=False, overwrite=True)
    assert verify_folder(tmp_path / "shards", progress=False) == []
    index = load_index(tmp_path / "shards")
    for shard in index.shards:
        data = (tmp_path / "shards" / shard.name).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard.sha256
    assert INDEX_NAME in content(tmp_path / "shards")
    assert len(held.classes("train")["parts/x"]) == SAMPLES
