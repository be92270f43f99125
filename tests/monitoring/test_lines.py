"""Lines of predictions, and files of them that grow, are cut, or are replaced."""

from __future__ import annotations

import json

import pytest

from unimmad.monitoring.lines import LONGEST_LINE, BrokenLineError, FollowedFile, parse_line

LINE = {
    "name": "a",
    "class": "solids/cookie",
    "modalities": ["rgb"],
    "score": 1,
    "anomalous": None,
    "later": 1,
    "monitor": {"reference": "ab", "time": "t", "images": {"rgb": {"brightness": 0.5}}},
}


def line(**changed: object) -> bytes:
    return json.dumps({**LINE, **changed}).encode()


def texts(file: FollowedFile, last: bool = False) -> list[str]:
    return [text.decode() for _, text in file.lines(last)]


def test_a_line_is_read():
    seen = parse_line(line(), "here", "ab")
    assert (seen.name, seen.time, seen.class_name, seen.score) == ("a", "t", "solids/cookie", 1.0)
    assert (seen.modalities, seen.images) == (("rgb",), {"rgb": {"brightness": 0.5}})


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        (b"", BrokenLineError, "here: not a prediction"),
        (b'{"name": "a", ', BrokenLineError, "here: not a prediction"),
        (b"\xff\xfe", BrokenLineError, "here: not a prediction"),
        (line(score="1"), BrokenLineError, r"not a prediction \(score: "),
        (line().replace(b": 0.5", b": NaN"), BrokenLineError, "not a prediction"),
        (line(monitor=None), ValueError, "nothing to compare with calibration; predict again"),
        (line(monitor={"reference": "cd"}), ValueError, "a prediction of another checkpoint.* is cd.* is ab"),
    ],
)
def test_what_is_none_is_refused_in_one_line(text, kind, said):
    with pytest.raises(ValueError, match=said) as told:
        parse_line(text, "here", "ab")
    assert type(told.value) is kind
    assert "\n" not in str(told.value)


def test_a_file_is_followed_as_it_grows_is_cut_and_is_replaced(tmp_path):
    path = tmp_path / "a.jsonl"
    file = FollowedFile(path)
    with pytest.raises(FileNotFoundError):
        texts(file)
    path.write_bytes(b"1\n2\n3")
    assert texts(file) == ["1", "2"]
    with path.open("ab") as stream:
        stream.write(b"3\n")
    assert list(file.lines()) == [(f"{path} line 3", b"33")]
    path.write_bytes(b"4\n")  # cut to nothing
    assert list(file.lines()) == [(f"{path} line 1", b"4")]
    with path.open("ab") as stream:
        stream.write(b"5\n")
    path.rename(tmp_path / "a.1")
    assert texts(file) == ["5"]  # no new one yet
    with (tmp_path / "a.1").open("ab") as stream:
        stream.write(b"6\n")
    path.write_bytes(b"7\n8")
    assert texts(file) == ["6", "7"]
    assert texts(file, last=True) == ["8"]
    path.write_bytes(b"x" * (3 * LONGEST_LINE))
    with pytest.raises(BrokenLineError, match="line 1: longer than"):
        texts(file)
