"""Paths, URLs and commands: told apart, and commands only from the command line."""

import json
from pathlib import Path

import pytest

from unimmad.data.location import RECORDED_SCHEMES, RemoteFolder, parse_data_folder, recorded_data_folder, shown
from unimmad.data.reading.shard_set import ShardSet


@pytest.mark.parametrize("text", ["data/mine", "/data/a:b", "C", "./pipe", "../x"])
def test_paths_stay_paths(text: str) -> None:
    assert parse_data_folder(text) == Path(text)


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("s3://bucket/set", "s3://bucket/set/train-0.tar"),
        ("s3://bucket/set/", "s3://bucket/set/train-0.tar"),
        ("https://host/set/{}?key=1", "https://host/set/train-0.tar?key=1"),
        ("file:///mnt/set", "file:///mnt/set/train-0.tar"),
        ("simplecache::s3://bucket/set", "simplecache::s3://bucket/set/train-0.tar"),
        ("pipe:aws s3 cp s3://bucket/set/{} -", "pipe:aws s3 cp s3://bucket/set/train-0.tar -"),
        ("PIPE:cat {}", "pipe:cat train-0.tar"),
    ],
)
def test_a_url_names_its_files(text: str, file: str) -> None:
    folder = parse_data_folder(text)
    assert isinstance(folder, RemoteFolder)
    assert folder.file("train-0.tar") == file


def test_a_name_is_one_word_of_a_command() -> None:
    folder = parse_data_folder("pipe:cat /set/{}")
    assert isinstance(folder, RemoteFolder)
    assert folder.file("a; touch b") == "pipe:cat /set/'a; touch b'"


def test_a_command_without_a_place_for_the_name() -> None:
    with pytest.raises(ValueError, match=r"pipe:cat x: a pipe: command needs \{\} where"):
        parse_data_folder("pipe:cat x")


@pytest.mark.parametrize("text", ["pipe:rm -r {}", "PIPE:rm {}", " pipe:rm {}", "pipe://rm {}"])
def test_a_recorded_command_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"state\.json names the command .* give it with --data"):
        recorded_data_folder(text, "run/state.json")


def test_recorded_paths_and_urls_are_read() -> None:
    assert recorded_data_folder("data/mine", "x") == Path("data/mine")
    for scheme in RECORDED_SCHEMES:
        url = f"{scheme}://bucket/set%20of/2026?key=1"
        assert recorded_data_folder(url, "x") == RemoteFolder(url)


@pytest.mark.parametrize(
    "text",
    [
        "reference://{}::https://host/refs.json",
        "reference://::file:///refs.json",
        "simplecache::s3://bucket/set",
        "s3://bucket/set::https://host/x",
        "https://host/{}?key=1",
        "https://host/{{c.__globals__[os].environ[HOME]}}",
        "https://host/ a",
        "https://host/https://other",
        "http://host/set",
        "file:///mnt/set",
        "ftp://host/set",
        "sftp://host/set",
        "data://x",
        "zip://x::y",
        "HTTP://host/set",
        "",
        "a\0b",
        "a\nb",
    ],
)
def test_anything_else_that_a_file_names_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"state\.json names .* as its data.* with --data") as refused:
        recorded_data_folder(text, "run/state.json")
    assert "\n" not in str(refused.value)


def test_a_file_gets_no_environment_variable_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsspec fills in the templates of a ``reference://`` URL with what they ask for, and opens the result."""
    monkeypatch.setenv("UNIMMAD_SECRET", "hunter2")
    place = f"file://{tmp_path}/{{{{c.__globals__[os].environ[UNIMMAD_SECRET]}}}}"
    references = {"version": 1, "templates": {"c": "{{ x }}"}, "refs": {"index.json": [place]}}
    (tmp_path / "references.json").write_text(json.dumps(references))
    index = {
        "format": 1,
        "source": "x",
        "datasets": {"a": {"field": "b", "modalities": []}},
        "shards": [],
        "samples": [],
    }
    index["datasets"]["a"]["modalities"] = [{"name": "rgb", "slot": 0, "kind": "rgb"}]  # type: ignore[index]
    (tmp_path / "hunter2").write_text(json.dumps(index))
    url = f"reference://{{}}::file://{tmp_path}/references.json"
    assert ShardSet.open([parse_data_folder(url)]).datasets.keys() == {"a"}, "typed, it is opened"
    with pytest.raises(ValueError, match=r"state\.json names 'reference://"):
        ShardSet.open([recorded_data_folder(url, "run/state.json")])


def test_messages_show_no_password_and_no_signature() -> None:
    assert shown("https://me:secret@host:81/set/a.tar?signature=secret") == "https://host:81/set/a.tar"
