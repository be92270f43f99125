"""Names as names of files: readable where they are plain, never the same for two."""

from __future__ import annotations

import itertools

import pytest

from unimmad.report.file_names import file_name


def test_plain_names_stay_as_they_are():
    assert file_name("solids", "cookie") == "solids-cookie"
    assert file_name("mvtec_3d", "cable-gland") == "mvtec_3d-cable-gland"
    assert file_name("rgb") == "rgb"


def test_no_two_are_the_same():
    texts = ["", "a", "b", "a-b", "b-a", "a b", "a_b", "a/b", "..", ".a", "_", "x" * 200, "x" * 201, "\u00e4", "\u00f6"]
    pairs = list(itertools.product(texts, texts))
    assert len({file_name(*names) for names in pairs}) == len(pairs)
    assert len({file_name(text) for text in texts}) == len(texts)


@pytest.mark.parametrize("name", ["..", ".", "", "a/../b", "/etc", "a\0b", "\u00e4" * 300])
def test_any_text_is_a_plain_file_name(name, tmp_path):
    assert file_name(name) not in (".", "..")
    path = tmp_path / f"{file_name(name)}.png"
    path.write_text("")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
