"""The plot of a comparison: every name can be read, and no axis shows what no metric can be."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_results import COST, result
from matplotlib.figure import Figure

from unimmad.comparing.page import quality_and_cost, save_comparison_page
from unimmad.comparing.results import Result, by_method
from unimmad.comparing.tables import Compared


def scored(method: str, value: float, speed: float, seed: int = 0) -> Result:
    made = result(method, {"a/b": value}, seed)
    cost = COST.model_copy(update={"images_per_second": speed})
    return Result(method, seed, made.report, made.steps, made.minutes, cost)


def drawn(*results: Result) -> Figure:
    figure = quality_and_cost(Compared(tuple(by_method(results, []))))
    figure.draw_without_rendering()
    return figure


@pytest.fixture
def close_together() -> Figure:
    """Fourteen methods of almost the same speed and quality, at the upper end; one at the lower, one long name."""
    names = [f"method_{number}" for number in range(12)] + ["_x" + "y" * 98]
    many = [scored(name, 0.995 + number / 2600, 20 + number / 10) for number, name in enumerate(names)]
    return drawn(*many, scored("worst", 0.0, 400.0))


def test_axes_end_at_0_and_1(close_together):
    for ax in close_together.axes:
        low, high = ax.get_ylim()
        assert 0 <= low < high <= 1
    spread = drawn(scored("x", 1.0, 20, 0), scored("x", 0.9, 20, 1), scored("y", 0.0, 30, 0), scored("y", 0.1, 30, 1))
    assert all(ax.get_ylim() == (0, 1) for ax in spread.axes)


def test_every_method_is_named_once_inside_of_the_picture_and_beside_the_others(close_together):
    [legend] = close_together.legends
    texts = legend.get_texts()
    assert len(texts) == 14
    assert texts[0].get_text().strip() == "method_0"
    boxes = [text.get_window_extent() for text in texts]
    assert all(close_together.bbox.x0 <= box.x0 and box.x1 <= close_together.bbox.x1 for box in boxes)
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
    assert not any(ax.get_tightbbox().overlaps(legend.get_window_extent()) for ax in close_together.axes)


def test_methods_look_different(close_together):
    looks = {(str(handle.get_color()), str(handle.get_marker())) for handle in close_together.legends[0].get_lines()}
    assert len(looks) == 14


@pytest.mark.parametrize(("seeds", "said"), [(1, "in a second, of one seed."), (2, "standard deviation over seeds.")])
def test_the_caption_speaks_of_bars_where_there_are_some(tmp_path: Path, seeds: int, said: str):
    results = [scored("x", 0.5 + seed / 10, 20, seed) for seed in range(seeds)]
    page = save_comparison_page(Compared(tuple(by_method(results, []))), tmp_path, {}, [], [])
    assert said in page.read_text()
