"""The picture of one prediction: what is anomalous can be found in it however anomalous it is."""

from __future__ import annotations

import numpy as np
import pytest

from unimmad.inference.pictures import GAP, LINE, heat_map

SIDE = 192
GRAY = (("rgb", np.full((SIDE, SIDE, 3), 0.7, np.float32)),)


def bump(highest: float) -> np.ndarray:
    """Falls with the distance from (60, 120), to 0 at 64 pixels."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return (highest * np.clip(1 - np.hypot(rows - 60, columns - 120) / 64, 0, None)).astype(np.float32)


def black_of_the_overlay(map_HW: np.ndarray) -> np.ndarray:
    picture = np.asarray(heat_map(GRAY, map_HW, (0.0, 1.0), title=("a", "b")))
    left = 2 * (SIDE + GAP)
    return (picture[3 * LINE : 3 * LINE + SIDE, left : left + SIDE] == 0).all(axis=2)


def test_a_line_is_around_the_highest_part_of_a_map_beyond_the_colours():
    line_HW = black_of_the_overlay(bump(9.0))
    rows, columns = np.nonzero(line_HW)
    # Above 5, the middle of 1 and 9: nearer than (1 - 5 / 9) * 64 pixels.
    assert np.hypot(rows - 60, columns - 120) == pytest.approx(64 * 4 / 9, abs=1.5)
    assert (rows.min(), rows.max()) == (60 - 28, 60 + 28)


def test_there_is_none_where_the_colours_reach_the_highest_value():
    assert not black_of_the_overlay(bump(1.0)).any()


def test_there_is_none_along_the_pictures_own_edge():
    assert not black_of_the_overlay(np.full((SIDE, SIDE), 9.0, np.float32)).any()
