"""Pictures of anomaly maps: input modalities, map, map laid over the image, and mask side by side.

Pictures are drawn on figures of their own, without pyplot's global state, so they can be made in any thread
and without a display.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, ScalarFormatter
from numpy.typing import NDArray

from unimmad.report.drawing import (
    CONTOUR_COLOUR,
    FONT_SIZE,
    MAP_COLOURS,
    MAP_CONTOUR_COLOUR,
    Image,
    Limits,
    draw_contour,
    heat_limits,
    laid_over,
    show_blank,
    show_image,
    show_map,
)
from unimmad.report.glyphs import drawable
from unimmad.serialization.atomic_write import write_aside

_CELL_INCHES = 1.7
_ROW_TITLE_INCHES = 0.3
_HEAD_INCHES = 0.25
_BAR_INCHES = 1.1
_TITLE_LINE_INCHES = 0.14
_GAP_INCHES = 0.03
_LETTER_INCHES = 0.075
"""Width of an average letter at FONT_SIZE, with some room to spare."""
_DPI = 120
_BAR_TICKS = 6


@dataclass(frozen=True)
class SamplePicture:
    """What is drawn of one test sample."""

    class_name: str
    key: str
    defect: str
    """``good`` or the name of the defect."""
    score: float
    """The image score."""
    images: tuple[tuple[str, Image], ...]
    """Name and H x W x 3 picture (0 to 1) of each modality, in slot order."""
    map_HW: Image
    mask_HW: NDArray[np.bool_] | None
    """True where anomalous; None where unknown."""
    note: str = ""
    """Why the sample is shown."""
    shares: tuple[float, ...] = ()
    """Each modality's share of the score, adding up to 1; empty of one modality, and where nobody says."""
    parts: tuple[Image, ...] = ()
    """What each modality adds to ``map_HW``; empty as ``shares``, and where images are cut into tiles."""
    misaligned: tuple[str, ...] = ()
    """The modalities that seem to lie elsewhere than the first."""

    @property
    def title(self) -> str:
        what = f"{self.key}   {self.defect}   score {self.score:.3g}"
        if self.shares:
            names = [name for name, _ in self.images]
            what += f", {', '.join(f'{name} {share:.0%}' for name, share in zip(names, self.shares, strict=True))}"
        if self.misaligned:
            what += f", {', '.join(self.misaligned)} perhaps misaligned"
        return f"{what}   ({self.note})" if self.note else what

    @property
    def part_of(self) -> dict[str, Image]:
        """``parts`` by the modality's name."""
        return dict(zip([name for name, _ in self.images], self.parts, strict=bool(self.parts)))


def class_figure(rows: Sequence[SamplePicture], threshold: float | None = None) -> Figure:
    """A few samples of one class, one a row, on a common colour scale; last what each modality adds to the map.

    Images, maps and mask of a sample have one size; samples may differ in size and modalities.

    Args:
        rows: from top to bottom.
        threshold: the map's contour is drawn around values at or above it; None draws the mask's alone.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("cannot draw a class: it was given no samples")
    limits = heat_limits([row.map_HW for row in rows])
    fullest_first = sorted(rows, key=lambda row: -len(row.images))
    names = list(dict.fromkeys(name for row in fullest_first for name, _ in row.images))
    heights = [_row_inches(row.images[0][1]) for row in rows]
    heights[0] += _HEAD_INCHES
    added = [name for name in names if any(name in row.part_of for row in rows)]
    factors = " or ".join(map(str, sorted({len(row.parts) for row in rows if row.parts})))
    figure, parts = _figure_of_rows(len(names) + 3 + len(added), heights, limits, heading=rows[0].class_name)
    _explain_contours(figure, threshold)
    for number, (part, row) in enumerate(zip(parts, rows, strict=True)):
        pictures = dict(row.images)
        columns = [(name, pictures.get(name)) for name in names]
        # A modality that adds as much as the sample's others has the map's colours.
        times = np.float32(len(row.parts))
        of_modalities = [(f"by {name}, x {factors}", row.part_of.get(name)) for name in added]
        of_modalities = [(head, None if part_HW is None else times * part_HW) for head, part_HW in of_modalities]
        maps = (row.map_HW, of_modalities)
        _draw_row(part, columns, maps, row.mask_HW, row.title, limits, number == 0, threshold)
    return figure


def save_overview(samples: Sequence[SamplePicture], path: Path, limits: Sequence[Limits] | None = None) -> None:
    """One page with one sample a class: the image with the mask's contour beside its anomaly map, as PNG.

    Args:
        samples: one a class.
        path: the PNG.
        limits: each map's colour scale; by default from its own median to its largest value.

    Raises:
        ValueError: no samples, or the folder cannot be written to.
    """
    if not samples:
        raise ValueError(f"cannot draw {path}: it was given no samples")
    scales = limits or [heat_limits([sample.map_HW]) for sample in samples]
    columns = min(len(samples), max(2, round(math.sqrt(0.6 * len(samples)))))
    rows = math.ceil(len(samples) / columns)
    tallest = max(_row_inches(sample.images[0][1]) for sample in samples)
    # At places of its own choice: a layout that is solved for takes time that grows faster than the classes.
    figure = new_figure(columns * 2 * _CELL_INCHES, rows * (tallest + 0.1), layout=None)
    for number, (sample, scale) in enumerate(zip(samples, scales, strict=True)):
        row, column = divmod(number, columns)
        _draw_tile(figure, sample, scale, (rows, columns), (row, column))
    save_figure(figure, path)


def _draw_tile(
    figure: Figure, sample: SamplePicture, scale: Limits, grid: tuple[int, int], place: tuple[int, int]
) -> None:
    """The picture and the map of one class under two lines of text; ``grid`` and ``place`` are rows and columns."""
    rows, columns = grid
    left, top = place[1] / columns, 1 - place[0] / rows
    titles = 2 * _TITLE_LINE_INCHES / float(figure.get_figheight())
    gap = _GAP_INCHES / float(figure.get_figwidth())
    lines = (sample.class_name, f"{sample.defect}   score {sample.score:.3g}")
    text = "\n".join(fitted(line, 2 * _CELL_INCHES) for line in lines)
    figure.text(left + 0.5 / columns, top, text, ha="center", va="top", fontsize=FONT_SIZE)
    for half in range(2):
        box = (left + half / (2 * columns) + gap, top - 1 / rows, 1 / (2 * columns) - 2 * gap, 1 / rows - titles)
        ax = figure.add_axes(box, anchor="N")
        if half == 0:
            show_image(ax, sample.images[0][1])
        else:
            show_map(ax, sample.map_HW, scale)
        draw_contour(ax, sample.mask_HW)


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` as PNG, aside first and then renamed.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    write_aside(path, lambda temporary: temporary.write_bytes(png(figure)))


def png(figure: Figure) -> bytes:
    """``figure`` as the content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", facecolor="white")
    return content.getvalue()


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty figure of this size in inches, on white; None: nothing is moved from where it was put."""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _row_inches(image: Image) -> float:
    """Height of one row with its title; very long or wide images are drawn smaller within it."""
    height, width = image.shape[:2]
    return _CELL_INCHES * min(max(height / width, 0.4), 2.0) + _ROW_TITLE_INCHES


def _figure_of_rows(
    columns: int, heights: list[float], limits: Limits, heading: str = ""
) -> tuple[Figure, list[SubFigure]]:
    """A figure with a part for each row and one colour bar beside them all."""
    width = columns * _CELL_INCHES
    figure = new_figure(width + _BAR_INCHES, sum(heights) + (_ROW_TITLE_INCHES if heading else 0))
    if heading:
        figure.suptitle(fitted(heading, 0.5 * width), fontsize=11, fontweight="bold")
    left, right = figure.subfigures(1, 2, width_ratios=(width, _BAR_INCHES), squeeze=False)[0]
    _draw_bar(right, limits)
    return figure, list(left.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])


def _draw_bar(part: SubFigure, limits: Limits) -> None:
    """The colour scale. What all its numbers have in common (a factor, an addend) is said in its label: above the bar
    it may be wider than the whole part, which leaves no room for the bar."""
    numbers = ScalarFormatter(useMathText=True)
    numbers.set_powerlimits((-2, 4))
    ticks = [tick for tick in MaxNLocator(_BAR_TICKS).tick_values(*limits) if limits[0] <= tick <= limits[1]]
    scale = ScalarMappable(Normalize(*limits), MAP_COLOURS)
    bar = part.colorbar(scale, cax=part.subplots(), extend="min", ticks=ticks, format=numbers)
    bar.ax.tick_params(labelsize=FONT_SIZE - 1)
    bar.ax.yaxis.offsetText.set_visible(False)
    numbers.set_locs(ticks)
    common = f"\n({numbers.get_offset()})" if numbers.get_offset() else ""
    bar.set_label(f"anomaly score{common}", fontsize=FONT_SIZE)


def _explain_contours(figure: Figure, threshold: float | None) -> None:
    """A legend in the upper right corner, on the grey of an overlay so that white lines can be seen."""
    lines = [Line2D([], [], color=CONTOUR_COLOUR, label="mask")]
    if threshold is not None and np.isfinite(threshold):
        lines.append(Line2D([], [], color=MAP_CONTOUR_COLOUR, label=f"map at {threshold:.3g} or more"))
    style = {"facecolor": "0.35", "labelcolor": "white", "framealpha": 1.0, "edgecolor": "none"}
    figure.legend(
        handles=lines, loc="upper right", ncols=len(lines), fontsize=FONT_SIZE - 1, borderaxespad=0.3, **style
    )


def _draw_row(
    part: SubFigure,
    columns: Sequence[tuple[str, Image | None]],
    maps: tuple[Image, Sequence[tuple[str, Image | None]]],
    mask_HW: NDArray[np.bool_] | None,
    title: str,
    limits: Limits,
    heads: bool,
    threshold: float | None = None,
) -> None:
    """Draw the modalities (None: this sample lacks it), then map, overlay and mask, then the maps of modalities."""
    map_HW, of_modalities = maps
    count = len(columns) + 3 + len(of_modalities)
    part.suptitle(fitted(title, count * _CELL_INCHES), x=0.005, ha="left", fontsize=FONT_SIZE)
    axes = list(part.subplots(1, count, squeeze=False)[0])
    for ax, (name, image) in zip(axes, columns, strict=False):
        if image is None:
            show_blank(ax, map_HW.shape, f"no {name}")
        else:
            show_image(ax, image)
    map_ax, overlay_ax, mask_ax = axes[len(columns) : len(columns) + 3]
    show_map(map_ax, map_HW, limits)
    first_image = next(image for _, image in columns if image is not None)
    show_image(overlay_ax, laid_over(first_image, map_HW, limits))
    if threshold is not None:
        draw_contour(overlay_ax, map_HW >= threshold, MAP_CONTOUR_COLOUR)
    draw_contour(overlay_ax, mask_HW)
    if mask_HW is None:
        show_blank(mask_ax, map_HW.shape, "no mask")
    else:
        show_image(mask_ax, mask_HW.astype(np.float32), cmap="gray", vmin=0, vmax=1)
    for ax, (_, of_modality_HW) in zip(axes[len(columns) + 3 :], of_modalities, strict=True):
        if of_modality_HW is None:
            show_blank(ax, map_HW.shape, "")
        else:
            show_map(ax, of_modality_HW, limits)
    if heads:
        heads_of_maps = ["map", "map on image", "mask", *(name for name, _ in of_modalities)]
        for ax, head in zip(axes, [*(name for name, _ in columns), *heads_of_maps], strict=True):
            ax.set_title(fitted(head, _CELL_INCHES), fontsize=FONT_SIZE)


def fitted(text: str, inches: float) -> str:
    """``text``, cut at its start where it would be wider than ``inches``: a key's end tells most."""
    return drawable(text, int(inches / _LETTER_INCHES))
