"""verify, against tars of all kinds: a line that says what is wrong, and ``tarfile`` never gets what would hang it."""

import tarfile
from pathlib import Path

import pytest
from hostile_tars import SHARD, blocks, entry, extended, header, hostile, hostile_folder, shard

from unimmad.data.writing.tar_headers import header_problems
from unimmad.data.writing.verify import verify_folder

HOSTILE = hostile()
READ_BY_TARFILE = {
    "path upwards",
    "absolute path",
    "name that is not UTF-8",
    "name that steers a terminal",
    "other name",
    "cut",
    "empty",
}
"""What is harmless to it."""


def test_a_shard_as_it_should_be_passes(tmp_path: Path) -> None:
    assert verify_folder(hostile_folder(tmp_path / "x", shard()), progress=False) == []


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tar_is_one_readable_line(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, message = HOSTILE[case]
    if case not in READ_BY_TARFILE:

        def opened(*_: object, **__: object) -> None:
            raise AssertionError("tarfile was let near it")

        monkeypatch.setattr(tarfile, "open", opened)
    problems = verify_folder(hostile_folder(tmp_path / "x", data), progress=False)
    assert any(message in problem for problem in problems), problems
    assert not any("let near it" in problem for problem in problems)
    assert all(problem.isprintable() and len(problem) < 500 for problem in problems)


def test_a_long_name_is_read(tmp_path: Path) -> None:
    """As the writer of shards stores those of more than 100 letters."""
    name = "d/" + "n" * 300
    for kind, body in ((tarfile.XHDTYPE, entry("path", name)), (tarfile.GNUTYPE_LONGNAME, name.encode() + b"\0")):
        (tmp_path / SHARD).write_bytes(shard(extended(body, kind) + header("d/short", 3) + blocks(b"abc")))
        assert list(header_problems(tmp_path / SHARD, 3)) == []


def test_a_description_that_is_too_long_is_none(tmp_path: Path) -> None:
    text = b'{"key": "' + b"k" * 2**20 + b'"}'
    data = header("d/k.json", len(text)) + blocks(text)
    problems = verify_folder(hostile_folder(tmp_path / "x", data), progress=False)
    assert any("d/k.json is not a JSON object" in problem for problem in problems)


def test_a_description_nested_deep_is_none(tmp_path: Path) -> None:
    text = b"[" * 50_000
    data = header("d/k.json", len(text)) + blocks(text)
    problems = verify_folder(hostile_folder(tmp_path / "x", data), progress=False)
    assert any("d/k.json is not a JSON object" in problem for problem in problems)
