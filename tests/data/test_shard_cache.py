"""The shard cache: whole and checked shards, a bound that holds, several processes at once."""

import hashlib
import logging
import os
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from unimmad.data.index import ShardEntry
from unimmad.data.reading import download
from unimmad.data.reading.download import FetchError
from unimmad.data.reading.shard_cache import ShardCache, default_cache_folder

SIZE = 1000


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "sleep", lambda _: None)


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    (tmp_path / "remote").mkdir()
    for number in range(5):
        (tmp_path / "remote" / f"{number}.tar").write_bytes(bytes([number]) * SIZE)
    return tmp_path / "remote"


def entry(remote: Path, number: int) -> ShardEntry:
    sha256 = hashlib.sha256(bytes([number]) * SIZE).hexdigest()
    return ShardEntry(name=f"{number}.tar", bytes=SIZE, sha256=sha256, samples=1)


def read(cache: ShardCache, remote: Path, number: int) -> bytes:
    with cache.open(entry(remote, number), f"file://{remote}/{number}.tar") as file:
        return file.read()


def kept(cache: ShardCache, remote: Path) -> list[int]:
    # While room is made, one shard takes another's place: with a look at each, both may seem to be there.
    with FileLock(cache.folder / ".lock"):
        return [number for number in range(5) if (cache.folder / f"{entry(remote, number).sha256}.tar").is_file()]


def test_a_shard_is_fetched_once(remote: Path, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 10 * SIZE)
    assert read(cache, remote, 3) == bytes([3]) * SIZE
    (remote / "3.tar").unlink()
    assert read(cache, remote, 3) == bytes([3]) * SIZE
    assert not list(cache.folder.glob(".*.part"))


def test_the_least_recently_read_make_room(remote: Path, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 3 * SIZE)
    for number in (0, 1, 2):
        read(cache, remote, number)
        os.utime(cache.folder / f"{entry(remote, number).sha256}.tar", (number, number))
    read(cache, remote, 0)
    read(cache, remote, 3)
    assert kept(cache, remote) == [0, 2, 3]
    read(cache, remote, 4)
    assert kept(cache, remote) == [0, 3, 4]


def test_a_shard_that_is_removed_while_it_is_read_stays_readable(remote: Path, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", SIZE)
    with cache.open(entry(remote, 0), f"file://{remote}/0.tar") as file:
        read(cache, remote, 1)
        assert kept(cache, remote) == [1]
        assert os.pread(file.fileno(), 10, 500) == bytes(10)


def test_a_shard_larger_than_the_cache(remote: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"shard 0\.tar has .* the whole shard cache .*; set data\.cache_gb higher"):
        read(ShardCache(tmp_path / "cache", SIZE - 1), remote, 0)


@pytest.mark.parametrize("change", ["altered", "cut", "longer"])
def test_what_is_not_the_shard_never_gets_its_name(remote: Path, tmp_path: Path, change: str) -> None:
    cache = ShardCache(tmp_path / "cache", 10 * SIZE)
    data = {"altered": bytes([7]) * SIZE, "cut": bytes(SIZE - 1), "longer": bytes(SIZE + 1)}[change]
    (remote / "0.tar").write_bytes(data)
    with pytest.raises(FetchError, match=r"0\.tar is not the file that the index describes"):
        read(cache, remote, 0)
    assert [path.name for path in cache.folder.iterdir() if path.suffix in (".tar", ".part")] == []
    (remote / "0.tar").write_bytes(bytes(SIZE))
    assert read(cache, remote, 0) == bytes(SIZE)


def test_a_truncated_file_in_the_cache_is_fetched_again(remote: Path, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 10 * SIZE)
    read(cache, remote, 0)
    os.truncate(cache.folder / f"{entry(remote, 0).sha256}.tar", 10)
    assert read(cache, remote, 0) == bytes(SIZE)


def test_what_a_killed_process_left_is_removed_and_foreign_files_are_not(remote: Path, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 2 * SIZE)
    cache.folder.mkdir()
    (cache.folder / f".{entry(remote, 4).sha256}.part").write_bytes(bytes(2 * SIZE))
    (cache.folder / "mine.tar").write_bytes(bytes(2 * SIZE))
    read(cache, remote, 0)
    read(cache, remote, 1)
    assert kept(cache, remote) == [0, 1]
    assert not list(cache.folder.glob(".*.part"))
    assert (cache.folder / "mine.tar").is_file()


def test_a_folder_that_cannot_be_written(remote: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match=r"the shard cache .*/file/cache can't be used .*data\.cache_folder"):
        read(ShardCache(tmp_path / "file" / "cache", SIZE), remote, 0)


def test_failed_attempts_are_logged(remote: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (remote / "0.tar").write_bytes(b"")
    with caplog.at_level(logging.WARNING), pytest.raises(FetchError):
        read(ShardCache(tmp_path / "cache", SIZE), remote, 0)
    assert len(caplog.records) == download.ATTEMPTS - 1


def test_a_part_of_another_machine_goes_when_nothing_was_written_for_long(remote: Path, tmp_path: Path) -> None:
    """Its lock may not reach here."""
    cache = ShardCache(tmp_path / "cache", 10 * SIZE)
    cache.folder.mkdir()
    part = cache.folder / f".{entry(remote, 4).sha256}.node7.cluster.31.0a1b.part"
    part.write_bytes(bytes(SIZE))
    read(cache, remote, 0)
    assert part.is_file()
    os.utime(part, (0, 0))
    read(cache, remote, 1)
    assert not part.exists()


def test_the_nodes_own_disk_comes_before_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours = f"unimmad-{os.getuid()}"
    for name in ("job", "node"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "job"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "node"))
    assert default_cache_folder() == tmp_path / "job" / ours
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "absent"))
    assert default_cache_folder() == tmp_path / "node" / ours


def test_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "unimmad"
    assert ShardCache.of("", 2) == ShardCache(tmp_path / "unimmad", 2 * 10**9)
    assert ShardCache.of(tmp_path / "x").folder == tmp_path / "x"
    with pytest.raises(ValueError, match="holds nothing"):
        ShardCache.of("", 0)


def read_in_turns(cache: ShardCache, remote: Path, shards: list[int]) -> None:
    """In a process of its own."""
    for turn in range(40):
        number = shards[(turn * 7) % len(shards)]
        with cache.open(
            entry(remote, number), f"pipe:echo {number} >> {remote}/log; cat {remote}/{number}.tar"
        ) as file:
            assert file.read() == bytes([number]) * SIZE
        assert len(kept(cache, remote)) * SIZE <= cache.limit_bytes


def run_readers(*arguments: Any) -> list[int | None]:
    readers = [get_context("fork").Process(target=read_in_turns, args=arguments) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return [reader.exitcode for reader in readers]


def test_processes_share_a_cache_that_is_too_small_for_them(remote: Path, tmp_path: Path) -> None:
    """It has room for what they fetch at the same time: less would be exceeded by that."""
    assert run_readers(ShardCache(tmp_path / "cache", 3 * SIZE), remote, [0, 1, 2, 3, 4]) == [0, 0, 0]


def test_processes_that_want_the_same_shard_fetch_it_once(remote: Path, tmp_path: Path) -> None:
    assert run_readers(ShardCache(tmp_path / "cache", 2 * SIZE), remote, [0]) == [0, 0, 0]
    assert (remote / "log").read_text() == "0\n"
