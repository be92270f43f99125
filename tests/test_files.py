from __future__ import annotations

import os

import pytest

from unimmad.files import temporary_beside, write_aside, write_text_aside


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
