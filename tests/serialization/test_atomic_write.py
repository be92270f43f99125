from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from unimmad.serialization.atomic_write import remove_leftovers, temporary_beside, write_aside, write_text_aside
from unimmad.serialization.text import utf8_name


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "table.csv"
    write_text_aside(path, "old")

    def half(temporary):
        temporary.write_text("ne")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_aside(path, half)
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]
    assert path.read_text() == "old"


def test_the_temporary_file_lies_in_the_same_folder_with_the_same_suffix(tmp_path):
    seen = []
    write_aside(tmp_path / "deep" / "picture.png", lambda path: seen.append(path) or path.write_bytes(b"x"))
    assert (seen[0].parent, seen[0].suffix) == (tmp_path / "deep", ".png")
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["picture.png"]


def test_no_two_processes_write_to_the_same_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "node7")
    path = tmp_path / ("ü" * 100 + ".csv")
    names = {temporary_beside(path).name for _ in range(20)}
    assert len(names) == 20
    for name in names:
        assert f".node7.{os.getpid()}." in name
        assert len(name.encode()) < 200
        assert name.startswith(".ü")
        assert name.endswith(".csv")
    write_text_aside(path, "fits")


def test_line_ends_and_letters_are_kept(tmp_path):
    write_text_aside(tmp_path / "text.md", "ä\r\nb\n")
    assert (tmp_path / "text.md").read_bytes() == "ä\r\nb\n".encode()


def test_an_unusable_folder_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*/file/x\.csv"):
        write_text_aside(tmp_path / "file" / "x.csv", "text")


def test_a_process_killed_as_it_writes_leaves_the_old_file_and_its_leftovers_go_later(tmp_path):
    path = tmp_path / "solids.pt2"
    path.write_text("old")
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from unimmad.serialization.atomic_write import write_aside\n"
        "def half(temporary):\n"
        "    temporary.write_text('ne')\n"
        f"    os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
        "write_aside(Path(sys.argv[1]), half)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], timeout=120).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    (leftover,) = set(tmp_path.iterdir()) - {path}
    others = [tmp_path / name for name in (".solids.mine.pt2", ".solid.host.1.0123abcd.pt2", "solids.pt2.bak")]
    for other in others:
        other.write_text("")
        os.utime(other, (0, 0))
    remove_leftovers(path)
    assert leftover.exists()  # somebody may be writing it
    os.utime(leftover, (0, 0))
    remove_leftovers(path)
    assert set(tmp_path.iterdir()) == {path, *others}


def test_names_that_are_not_utf8_are_written_and_can_be_written_out(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.csv")
    write_text_aside(path, "fits")
    assert path.read_text() == "fits"
    assert utf8_name(path.name) == r"caf\xe9.csv"
    assert utf8_name("café") == "café"
