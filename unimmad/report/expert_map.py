"""The expert map (paper, section on routing): who uses which leaders, and how alike the classes' usage is, drawn.

Letters: G gates, L leaders, R rows (dataset, modality), C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from unimmad.report.drawing import FONT_SIZE
from unimmad.report.expert_usage import Shares, UsageRow
from unimmad.report.figures import new_figure, save_figure
from unimmad.report.glyphs import drawable

_DISC_INCHES = 0.17
"""Distance between two leaders, and the diameter of the disc of a leader that every token goes to."""
_LABEL_INCHES = 1.5
_HEAD_INCHES = 0.55
_CLASS_INCHES = 0.24
_MOST_INCHES = 20
"""Of what grows with the classes or datasets: discs, squares and letters get smaller beyond that. Without a bound, the
memory for the classes' square would grow with their number squared."""
_LEAST_FONT_SIZE = 1.0
_POINTS_PER_INCH = 72
_OVERLAP_COLOURS = "magma"


def save_expert_map(rows: Sequence[UsageRow], gates: Sequence[str], columns: int, path: Path) -> None:
    """Write :func:`expert_map_figure` as PNG.

    Raises:
        ValueError: the folder cannot be written to.
    """
    save_figure(expert_map_figure(rows, gates, columns), path)


def expert_map_figure(rows: Sequence[UsageRow], gates: Sequence[str], columns: int) -> Figure:
    """One panel a gate: leaders across, datasets and modalities down, disc area = activation frequency.

    Colours tell the datasets apart. The disc of a leader that all tokens of its row go to touches its neighbours'.

    Args:
        rows: at least one.
        gates: names of G.
        columns: panels side by side: the branches of a level.
    """
    leaders = rows[0].frequency_GL.shape[1]
    panels_down = -(-len(gates) // columns)
    row_inches = min(_DISC_INCHES, _MOST_INCHES / (len(rows) + 1))
    width = columns * (leaders + 1) * _DISC_INCHES + _LABEL_INCHES
    height = panels_down * ((len(rows) + 1) * row_inches + _HEAD_INCHES)
    figure = new_figure(width, height)
    grid = figure.subplots(panels_down, columns, squeeze=False, sharey=True)
    for number, (ax, gate) in enumerate(zip(grid.reshape(-1), gates, strict=False)):
        frequency_RL = np.stack([row.frequency_GL[number] for row in rows])
        _draw_gate(ax, rows, frequency_RL, gate, row_inches / _DISC_INCHES)
    for ax in grid[-1]:
        ax.set_xlabel("leader", fontsize=FONT_SIZE)
    for ax in grid.reshape(-1)[len(gates) :]:
        ax.set_visible(False)
    return figure


def save_class_overlap(classes: Sequence[str], overlap_CC: Shares, path: Path) -> None:
    """The overlap of every two classes' usage as a square of colours, 0 (dark) to 1, as PNG.

    Raises:
        ValueError: the folder cannot be written to.
    """
    class_inches = min(_CLASS_INCHES, _MOST_INCHES / len(classes))
    side = len(classes) * class_inches
    font_size = _font_size(FONT_SIZE, class_inches / _CLASS_INCHES)
    figure = new_figure(side + 3.2, side + 2.0)
    ax = figure.subplots()
    image = ax.imshow(overlap_CC, cmap=_OVERLAP_COLOURS, vmin=0, vmax=1)
    names = [drawable(name) for name in classes]
    ax.set_yticks(range(len(names)), names, fontsize=font_size)
    ax.set_xticks(range(len(names)), names, fontsize=font_size, rotation=90)
    bar = figure.colorbar(image, ax=ax, shrink=min(1.0, 2.5 / max(side, 0.1)))
    bar.ax.tick_params(labelsize=FONT_SIZE - 1)
    bar.set_label("overlap of leader usage", fontsize=FONT_SIZE)
    save_figure(figure, path)


def _font_size(usual: float, shrunk: float) -> float:
    return max(_LEAST_FONT_SIZE, usual * shrunk)


def _draw_gate(ax: Axes, rows: Sequence[UsageRow], frequency_RL: Shares, gate: str, shrunk: float) -> None:
    """One panel; ``shrunk``: the height of its rows, 1 where they are as high as a disc."""
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    colours = [colormaps["tab10"](datasets.index(row.dataset) % 10) for row in rows]
    count, leaders = frequency_RL.shape
    row_D, leader_D = np.nonzero(frequency_RL)
    ax.scatter(
        leader_D,
        row_D,
        s=(shrunk * _DISC_INCHES * _POINTS_PER_INCH) ** 2 * frequency_RL[row_D, leader_D],
        c=[colours[row] for row in row_D],
        linewidths=0,
        zorder=2,
    )
    ax.set_title(gate, fontsize=FONT_SIZE)
    ax.set(xlim=(-0.75, leaders - 0.25), ylim=(count - 0.25, -0.75))
    ax.set_xticks(range(0, leaders, 2 if leaders <= 16 else 4))
    ax.set_yticks(range(count), [drawable(f"{row.dataset} {row.modality}") for row in rows])
    ax.tick_params(labelsize=FONT_SIZE - 1, length=2)
    ax.tick_params(axis="y", labelsize=_font_size(FONT_SIZE - 1, shrunk))
    ax.grid(color="0.93", linewidth=0.5, zorder=0)
    ax.set_axisbelow(True)
    for spine in ax.spines.values():
        spine.set_color("0.8")
