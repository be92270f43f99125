"""One process at a time holds a folder, whatever became of the one before."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from unimmad.serialization import folder_lock, lock_holder
from unimmad.serialization.atomic_write import host_name
from unimmad.serialization.folder_lock import FolderLock
from unimmad.serialization.lock_holder import STALE_S, Holder, find_lock, read_lock

NAME = "training.lock"
GONE = {"started": 1}
"""A process that had this one's number before."""
FAR = {"machine": "another boot", "host": "node7"}
HOLDING = """
import sys, time
from pathlib import Path
from unimmad.serialization.folder_lock import FolderLock
with FolderLock("training.lock", "training") as lock:
    lock.take(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(60)
"""


def new_lock() -> FolderLock:
    return FolderLock(NAME, "training")


def leave(folder: Path, silent_s: float = 0, name: str = NAME, **changes: Any) -> Holder:
    """A lock file of another process, last touched a while ago."""
    holder = Holder.this_process().model_copy(update=changes)
    (folder / name).write_text(holder.model_dump_json())
    then = (folder / name).stat().st_mtime - silent_s
    os.utime(folder / name, (then, then))
    return holder


def holder_at(folder: Path) -> Holder:
    read = read_lock(folder / NAME)
    assert read is not None
    assert read[0] is not None
    return read[0]


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def refused(folder: Path) -> str:
    with new_lock() as lock, pytest.raises(ValueError, match="is held by") as error:
        lock.take(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_second_is_told_who_holds_it_and_what_to_do(tmp_path):
    with new_lock() as lock:
        assert lock.take(tmp_path / "run") is False
        since = holder_at(tmp_path / "run").since
        assert refused(tmp_path / "run") == (
            f"{tmp_path / 'run'} is in use: {NAME} is held by process {os.getpid()} on {host_name()} since {since}; "
            "wait for the end of that training, or choose another --output-dir"
        )
        (tmp_path / "run" / "kept").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["kept"]
    with new_lock() as lock:
        lock.take(tmp_path / "run")


def test_a_folder_in_which_nothing_was_written_is_gone_with_its_lock(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("there", "made"):
        with new_lock() as lock:
            lock.take(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with new_lock() as lock, pytest.raises(ValueError, match=rf"cannot write .*file/x/{NAME}: Not a directory; choose"):
        lock.take(tmp_path / "file" / "x")


def test_a_process_that_was_killed_holds_it_no_longer(tmp_path):
    command = [sys.executable, "-c", HOLDING, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert f"process {process.pid} on " in refused(tmp_path)
        process.kill()
        wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        with new_lock() as lock:
            lock.take(tmp_path)
            assert holder_at(tmp_path).pid == os.getpid()


def test_another_process_with_its_number_does_not_hold_it(tmp_path, caplog):
    left = leave(tmp_path, pid=os.getpid(), **GONE)
    with caplog.at_level(logging.INFO), new_lock() as lock:
        lock.take(tmp_path)
        assert holder_at(tmp_path).token != left.token
    assert f"was left by process {os.getpid()} on " in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_holder_on_another_machine_counts_as_gone_when_it_was_silent_for_long(tmp_path):
    leave(tmp_path, STALE_S - 5, pid=1, **FAR)
    assert "process 1 on node7 since " in (said := refused(tmp_path))
    assert "heard of 55 s ago (after 60 s it counts as gone)" in said
    leave(tmp_path, STALE_S + 1, pid=1, **FAR)
    with new_lock() as lock:
        lock.take(tmp_path)


def test_the_clock_of_this_machine_does_not_matter(tmp_path, monkeypatch):
    leave(tmp_path, **FAR)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    refused(tmp_path)


def test_in_a_container_numbers_of_processes_outside_mean_nothing(tmp_path, monkeypatch):
    """What has no such process here may live there."""
    leave(tmp_path, pid=2**22 + 1, machine="this boot, other numbers")
    refused(tmp_path)
    leave(tmp_path, pid=2**22 + 1, machine="")
    monkeypatch.setattr(lock_holder, "_machine", lambda: "")
    refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b"[" * 5000, b'{"token": "../../x"}'])
def test_a_damaged_file_is_respected_for_as_long_as_a_silent_one(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    then = time.time() - 30
    os.utime(tmp_path / NAME, (then, then))
    assert "is held by an unknown process, heard of 30 s ago" in refused(tmp_path)
    os.utime(tmp_path / NAME, (then - STALE_S, then - STALE_S))
    with new_lock() as lock:
        lock.take(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_of_many_that_take_it_over_at_once_one_succeeds(tmp_path):
    for attempt in range(30):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        leave(folder, **GONE)
        ready, ended, outcomes = threading.Barrier(6), threading.Barrier(6), []

        def take(folder: Path, ready: threading.Barrier, ended: threading.Barrier, outcomes: list[bool]) -> None:
            with new_lock() as lock:
                ready.wait()
                try:
                    lock.take(folder)
                    outcomes.append(True)
                except ValueError:
                    outcomes.append(False)
                ended.wait()

        threads = [threading.Thread(target=take, args=(folder, ready, ended, outcomes)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert sorted(outcomes) == [False] * 5 + [True]
        assert list(folder.iterdir()) == []


def test_who_saw_it_stale_and_comes_late_takes_nothing_from_who_came_first(tmp_path, monkeypatch):
    leave(tmp_path, **GONE)
    seen = find_lock(tmp_path / NAME)
    with new_lock() as first:
        first.take(tmp_path)
        finds = iter([seen])
        monkeypatch.setattr(folder_lock, "find_lock", lambda path: next(finds, None) or find_lock(path))
        refused(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_one_that_died_while_it_took_over_is_taken_over_itself(tmp_path):
    stale = leave(tmp_path, **GONE)
    leave(tmp_path, name=f"{NAME}.{stale.token}", **GONE)
    with new_lock() as lock:
        lock.take(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_living_one_that_takes_over_is_not_disturbed(tmp_path):
    stale = leave(tmp_path, **GONE)
    leave(tmp_path, name=f"{NAME}.{stale.token}", pid=7, **FAR)
    assert "process 7 on node7" in refused(tmp_path)


def test_the_last_start_of_the_same_job_is_waited_for_in_one_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.setattr(folder_lock, "POLL_S", 0.02)
    leave(tmp_path, job="41 of SLURM", pid=3, **FAR)
    threading.Timer(0.5, (tmp_path / NAME).unlink).start()
    with new_lock() as lock:
        assert lock.take(tmp_path) is True
    (record,) = caplog.records
    assert "is held by process 3 on node7 (job 41 of SLURM) since " in record.getMessage()
    assert "waiting until it is gone" in record.getMessage()


def test_the_last_start_of_the_same_job_that_is_silent_is_taken_over(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    monkeypatch.setattr(folder_lock, "POLL_S", 0.02)
    leave(tmp_path, STALE_S - 0.3, job="mine of torchrun", **FAR)
    with new_lock() as lock:
        assert lock.take(tmp_path) is True


def test_one_of_the_same_job_that_lives_on_is_not_waited_for_forever(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    for name, seconds in (("POLL_S", 0.02), ("STALE_S", 0.2), ("BEAT_S", 0.05)):
        monkeypatch.setattr(folder_lock, name, seconds)
    with new_lock() as lock:
        lock.take(tmp_path)
        assert "(job 41 of SLURM)" in refused(tmp_path)


def test_torchruns_without_a_name_are_no_job(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with new_lock() as lock:
        lock.take(tmp_path)
        assert "job" not in refused(tmp_path)


def test_the_holder_is_heard_of_and_puts_back_what_was_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "BEAT_S", 0.02)
    path = tmp_path / NAME
    with new_lock() as lock:
        lock.take(tmp_path)
        os.utime(path, (1, 1))
        wait_until(lambda: path.stat().st_mtime > 1)
        path.unlink()
        wait_until(path.exists)
        lock.check()
    assert not path.exists()


def test_who_lost_it_is_told_and_leaves_it_to_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "BEAT_S", 0.02)
    with new_lock() as lock:
        lock.take(tmp_path)
        lock.check()
        other = leave(tmp_path, **FAR)
        wait_until(lambda: lock._lost)
        with pytest.raises(ValueError, match="was taken over by another process: this training had not been heard of"):
            lock.check()
    assert holder_at(tmp_path) == other
