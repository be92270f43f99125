"""Paths, URLs and commands: told apart, and commands only from the command line."""

from pathlib import Path

import pytest

from unimmad.data.location import RemoteFolder, parse_data_folder, recorded_data_folder, shown


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
    assert recorded_data_folder("s3://bucket/set", "x") == RemoteFolder("s3://bucket/set")


def test_messages_show_no_password_and_no_signature() -> None:
    assert shown("https://me:secret@host:81/set/a.tar?signature=secret") == "https://host:81/set/a.tar"
