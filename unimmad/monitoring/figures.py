"""A monitor's curves: each statistic's values over time with what is usual, and the evidence of a change below."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unimmad.monitoring.streams import Stream
from unimmad.report.drawing import ANOMALOUS_COLOUR, FONT_SIZE, NORMAL_COLOUR
from unimmad.report.figures import fitted, new_figure

_PANEL_INCHES = (2.6, 2.6)
_MOST_COLUMNS = 4
_LEAST_EVIDENCE = 1e-3
_MOST_EVIDENCE = 1e12
"""Of the axis; beyond it a curve is as good as sure."""


def stream_figure(streams: Sequence[Stream]) -> Figure:
    """The statistics of one class's images of one modality, or of its scores."""
    columns = min(max(len(streams), 2), _MOST_COLUMNS)
    rows = math.ceil(len(streams) / columns)
    # At places of its own choice: a layout that is solved for takes a second for each class.
    figure = new_figure(columns * _PANEL_INCHES[0], rows * _PANEL_INCHES[1], layout=None)
    for number, stream in enumerate(streams):
        left, bottom = number % columns / columns, 1 - (number // columns + 1) / rows
        width, height = 0.74 / columns, 1 / rows
        values = figure.add_axes((left + 0.22 / columns, bottom + 0.52 * height, width, 0.37 * height))
        evidence = figure.add_axes((left + 0.22 / columns, bottom + 0.17 * height, width, 0.27 * height), sharex=values)
        _draw_values(values, stream)
        _draw_evidence(evidence, stream)
    return figure


def _draw_values(ax: Axes, stream: Stream) -> None:
    """Those since a change in another colour."""
    since = math.inf if stream.alarm is None else stream.alarm.since.number
    before = [point for point in stream.curve if point.number < since]
    after = [point for point in stream.curve if point.number >= since]
    ax.axhspan(*stream.usual, color=NORMAL_COLOUR, alpha=0.15, linewidth=0)
    for points, colour in ((before, NORMAL_COLOUR), (after, ANOMALOUS_COLOUR)):
        ax.plot([one.number for one in points], [one.value for one in points], ".", color=colour, markersize=3)
    name = stream.name.statistic.replace("_", " ")
    ax.set_title(fitted(name, _PANEL_INCHES[0]), fontsize=FONT_SIZE + 1)
    ax.tick_params(labelbottom=False)
    _plain(ax)


def _draw_evidence(ax: Axes, stream: Stream) -> None:
    points = list(stream.curve)
    shown = [min(max(one.capital, _LEAST_EVIDENCE), _MOST_EVIDENCE) for one in points]
    colour = NORMAL_COLOUR if stream.alarm is None else ANOMALOUS_COLOUR
    ax.plot([one.number for one in points], shown, color=colour, linewidth=1.2)
    ax.axhline(stream.limit, color="0.3", linestyle="--", linewidth=0.9)
    ax.set_yscale("log")
    ax.set_ylim(_LEAST_EVIDENCE, max(10 * stream.limit, 10 * max(shown, default=1.0)))
    ax.set_ylabel("evidence", fontsize=FONT_SIZE - 1)
    ax.set_xlabel("image", fontsize=FONT_SIZE - 1)
    _plain(ax)


def _plain(ax: Axes) -> None:
    ax.tick_params(labelsize=FONT_SIZE - 2)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
