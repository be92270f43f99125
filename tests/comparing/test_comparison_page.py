"""The page's plot."""

from __future__ import annotations

import pytest
from made_results import result

from unimmad.comparing.page import quality_and_cost
from unimmad.comparing.results import by_method
from unimmad.comparing.tables import Compared
from unimmad.report.figures import png


@pytest.mark.filterwarnings("error")
def test_long_names_of_methods_leave_room_for_the_panels():
    """Where they took all of it, matplotlib warned and laid out nothing."""
    results = [result(f"{'m' * 98}_{number}", {"a/b": 0.5 + number / 10}) for number in range(3)]
    figure = quality_and_cost(Compared(tuple(by_method(results, []))))
    assert png(figure).startswith(b"\x89PNG")
    assert all(ax.get_position().width > 0.2 for ax in figure.axes)
    assert [text.get_text()[-5:] for text in figure.axes[0].texts] == ["mmm_0", "mmm_1", "mmm_2"]
