"""Names in figures: as they are where a font has the letters, else escaped."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import matplotlib
import pytest
from matplotlib import font_manager

from unimmad.report import glyphs
from unimmad.report.figures import fitted, new_figure, png


@pytest.fixture
def only_latin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(glyphs, "FALLBACKS", ())
    glyphs._letters.cache_clear()
    yield
    glyphs._letters.cache_clear()


def test_what_no_font_has_is_escaped(only_latin: None) -> None:
    assert glyphs.drawable("Ärger-ü/a_b 50%") == "Ärger-ü/a_b 50%"
    assert glyphs.drawable("正常 $1") == r"\u6b63\u5e38 \$1"
    assert fitted("ネジ-good", 2.0) == r"\u30cd\u30b8-good"
    assert fitted("ネジ-good", 1.0) == r"...u30b8-good"
    figure = new_figure(3, 1)
    figure.text(0, 0.5, glyphs.drawable("異常 1"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert png(figure)


def test_a_font_of_the_machine_is_fallen_back_on(monkeypatch: pytest.MonkeyPatch) -> None:
    family = "STIXGeneral"  # comes with Matplotlib, and is not its usual one
    assert family in font_manager.get_font_names()
    usual = list(matplotlib.rcParams["font.family"])
    monkeypatch.setattr(glyphs, "FALLBACKS", (family,))
    glyphs._letters.cache_clear()
    try:
        glyphs.drawable("a")
        assert matplotlib.rcParams["font.family"] == [*usual, family]
    finally:
        matplotlib.rcParams["font.family"] = usual
        glyphs._letters.cache_clear()
