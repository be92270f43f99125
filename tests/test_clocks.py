"""A machine's clock may be set at any moment: no duration, time-out or age depends on it."""

import os
import re
import time
from pathlib import Path

import pytest

import unimmad
from unimmad.data.index import ShardEntry
from unimmad.data.reading.resized_cache import ResizedCache
from unimmad.data.reading.shard_cache import ShardCache
from unimmad.serialization.atomic_write import time_of

PACKAGE = Path(unimmad.__file__).parent
HOURS = 3600.0
WALL_CLOCK = re.compile(r"\btime\.time(_ns)?\(|\bdatetime\b|from time import .*\btime\b")

SAYS_WHEN = {"launching/failure_notes.py", "inference/detector.py", "inference/feedback.py", "inference/output.py"}
"""When a rank failed, to be shown beside other ranks': by the node's clock, as its note says. When a sample was
predicted, for people who ask since when images have changed; a monitor goes by the order alone. And when feedback was
given, for the list of its versions, which go by number."""


@pytest.fixture(params=[-30 * HOURS, 30 * HOURS], ids=["back", "ahead"])
def jumped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """The clock is off by this many seconds; the file system's and the monotonic one are not."""
    true_time = time.time
    monkeypatch.setattr(time, "time", lambda: true_time() + request.param)
    return float(request.param)


def test_only_what_says_when_reads_the_wall_clock() -> None:
    readers = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if WALL_CLOCK.search(path.read_text().replace("from datetime import timedelta", ""))
    }
    assert readers == SAYS_WHEN


def test_the_time_of_a_folder_is_its_file_systems(tmp_path: Path, jumped: float) -> None:
    (tmp_path / "file").touch()
    assert abs(time_of(tmp_path) - (tmp_path / "file").stat().st_mtime) < 60
    assert abs(time_of(tmp_path) - time.time()) > 20 * HOURS
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_shard_that_another_machine_is_fetching_stays_and_an_abandoned_one_goes(
    tmp_path: Path, jumped: float
) -> None:
    cache = ShardCache(tmp_path / "cache", 10_000)
    cache.folder.mkdir()
    live, dead = (cache.folder / f".{letter * 64}.node7.31.0a1b.part" for letter in "ab")
    for part in (live, dead):
        part.write_bytes(b"half")
    old = live.stat().st_mtime - 2 * HOURS
    os.utime(dead, (old, old))
    (tmp_path / "0.tar").write_bytes(b"shard")
    sha256 = "a0af7dec0b4a5bb5ee4bcb6ea5ee0e3a5ee0e3a5ee0e3a5ee0e3a5ee0e3a5ee0"
    entry = ShardEntry(name="0.tar", bytes=5, sha256=sha256, samples=1)
    cache._reserve(cache.folder / f".{sha256}.here.1.0a1b.part", entry.bytes)
    assert live.exists()
    assert not dead.exists()


def test_an_image_that_is_being_kept_stays_and_an_abandoned_one_goes(tmp_path: Path, jumped: float) -> None:
    folder = tmp_path / "resized" / "some shard"
    folder.mkdir(parents=True)
    live, dead = folder / ".1-rgb.7.pixels", folder / ".2-rgb.8.pixels"
    for part in (live, dead):
        part.write_bytes(b"half")
    old = live.stat().st_mtime - 2 * HOURS
    os.utime(dead, (old, old))
    ResizedCache(tmp_path, 8, 10_000).make_room({})
    assert live.exists()
    assert not dead.exists()
