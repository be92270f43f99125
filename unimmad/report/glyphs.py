"""Names as figures show them: in a font that has the letters, or escaped.

Matplotlib brings fonts for Latin, Greek and Cyrillic; Chinese, Japanese and Korean names need one of the machine's.
"""

from __future__ import annotations

from functools import cache

import matplotlib
from matplotlib import font_manager

FALLBACKS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans CJK KR",
    "Source Han Sans",
    "IPAexGothic",
    "TakaoGothic",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "NanumGothic",
    "Noto Sans Devanagari",
    "Noto Sans Arabic",
    "Noto Sans Thai",
    "Unifont",
)
"""Fonts that are looked for on the machine, the first ones first."""


def drawable(text: str, most: int | None = None) -> str:
    """``text`` for a figure: what no font has as ``\\uXXXX``, so that it still tells one name from another.

    Of more than ``most`` letters its beginning is cut off: a key's end tells most.
    """
    letters = _letters()
    shown = "".join(letter if ord(letter) in letters else ascii(letter)[1:-1] for letter in text)
    if most is not None and len(shown) > most:
        shown = f"...{shown[len(shown) - most + 3 :]}"
    return shown.replace("$", r"\$")  # a pair of dollars would be set as mathematics


@cache
def _letters() -> frozenset[int]:
    """Code points that figures can show; lets Matplotlib fall back on the fonts that are there."""
    found = set(font_manager.get_font_names())
    families = list(matplotlib.rcParams["font.family"])
    families += [name for name in FALLBACKS if name in found and name not in families]
    matplotlib.rcParams["font.family"] = families
    files = [font_manager.findfont(font_manager.FontProperties(family=[name])) for name in families]
    fonts = [font_manager.get_font(file) for file in files]
    return frozenset(code for font in fonts for code in font.get_charmap())
