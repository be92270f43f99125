"""What the expert map draws: discs where leaders are used, as large as they are used often."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from unimmad.report.expert_map import expert_map_figure, save_class_overlap, save_expert_map
from unimmad.report.expert_usage import UsageRow

GATES = ("level 1, 1 x 1", "level 1, 3 x 3", "level 2, 1 x 1", "level 2, 3 x 3")


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    names = [("metal", "rgb"), ("metal", "depth"), ("brains $1$", "t1")]
    return [UsageRow(*name, rng.random((4, 8)) * (rng.random((4, 8)) > 0.4)) for name in names]


def test_each_panel_has_a_disc_for_every_leader_used(rows):
    figure = expert_map_figure(rows, GATES, columns=2)
    panels = figure.axes
    assert [ax.get_title() for ax in panels] == list(GATES)
    for gate, ax in enumerate(panels):
        (discs,) = ax.collections
        frequency_RL = np.stack([row.frequency_GL[gate] for row in rows])
        drawn = {(int(y), int(x)): size for (x, y), size in zip(discs.get_offsets(), discs.get_sizes(), strict=True)}
        assert set(drawn) == set(zip(*np.nonzero(frequency_RL), strict=True))
        largest = max(drawn.values()) / frequency_RL.max()
        for place, size in drawn.items():
            assert size == pytest.approx(largest * frequency_RL[place])
    for ax in panels[::2]:
        assert [label.get_text() for label in ax.get_yticklabels()] == ["metal rgb", "metal depth", r"brains \$1\$ t1"]


def test_rows_of_one_set_share_a_colour(rows):
    figure = expert_map_figure(rows, GATES, columns=2)
    (discs,) = figure.axes[0].collections
    colour_of_row = {int(y): tuple(c) for (_, y), c in zip(discs.get_offsets(), discs.get_facecolors(), strict=True)}
    assert colour_of_row[0] == colour_of_row[1] != colour_of_row[2]


def test_figures_are_written_as_png(rows, tmp_path):
    save_expert_map(rows, GATES, 2, tmp_path / "experts" / "map.png")
    save_class_overlap(["metal/plate", "brains/upper"], np.array([[1, 0.2], [0.2, 1]]), tmp_path / "overlap.png")
    for path in (tmp_path / "experts" / "map.png", tmp_path / "overlap.png"):
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 100
