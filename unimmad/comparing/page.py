"""The page of a comparison: tables, quality against cost, and the samples that methods disagree on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from unimmad.comparing.tables import Compared
from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.drawing import FONT_SIZE
from unimmad.report.figures import new_figure, save_figure
from unimmad.report.glyphs import drawable
from unimmad.report.html_page import Picture, render_page
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.text import one_line

PAGE = "comparison.html"
PLOT = "quality_and_cost.png"
PLOTTED = ("I-AUROC", "P-AUROC", "AUPRO")
COLOURS = 10
"""After so many methods the next marker has the first colour again."""
MARKERS = "os^Dv*"
LONGEST_NAME = 60
"""Letters of a method's name below the plot."""
LEGEND_LETTERS = 150
"""In a line below the plot, with the marks before the names."""
LETTERS_OF_A_MARK = 6


def save_comparison_page(
    compared: Compared, folder: Path, header: Mapping[str, str], disputed: Sequence[Picture], files: Sequence[Path]
) -> Path:
    """Write the page and its plot into ``folder``; gives the page.

    Args:
        compared: what was found.
        folder: of the comparison.
        header: what holds for all methods, in words.
        disputed: pictures of samples, those that are disputed most first.
        files: the tables' other forms, to be linked.

    Raises:
        ValueError: the folder can't be written to.
    """
    plot = folder / PLOT
    save_figure(quality_and_cost(compared), plot)
    page = folder / PAGE
    text = render_page(
        "comparison.html.j2",
        page,
        header=header,
        files=files,
        means=compared.metric_table(means_only=True),
        metrics=compared.metric_table(),
        cost=compared.cost_table(),
        plot=Picture(plot, f"Mean over datasets against samples scored in a second{_bars(compared)}."),
        disputed=disputed,
    )
    write_text_aside(page, text)
    return page


def _bars(compared: Compared) -> str:
    return "; bars: standard deviation over seeds" if compared.has_several_seeds else ", of one seed"


def quality_and_cost(compared: Compared) -> Figure:
    """A panel for each of a few metrics: its mean over datasets against speed, a point a method, named below."""
    assert set(PLOTTED) <= set(METRIC_KEYS)
    figure = new_figure(4.0 * len(PLOTTED), 3.4)
    of_methods = compared.of_all()
    speed = {
        method.method: sum(result.cost.images_per_second for result in method.results) / len(method.results)
        for method in compared.methods
    }
    for ax, key in zip(figure.subplots(1, len(PLOTTED), squeeze=False)[0], PLOTTED, strict=True):
        for (method, metrics), look in zip(of_methods.items(), _looks(), strict=False):
            if (spread := metrics[key]) is not None:
                bar = None if spread.std is None else _within_axes(spread.mean, spread.std)
                ax.errorbar(speed[method], spread.mean, yerr=bar, capsize=3, zorder=3, clip_on=False, **look)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.margins(0.1, 0.1)
        low, high = ax.get_ylim()
        ax.set_ylim(max(low, 0.0), min(high, 1.0))
        ax.set_xlabel("samples a second", fontsize=FONT_SIZE)
        ax.set_title(f"mean {key}", fontsize=FONT_SIZE + 1)
        ax.tick_params(labelsize=FONT_SIZE - 1, which="both")
        ax.grid(alpha=0.3)
    _name_below(figure, list(of_methods))
    return figure


def _looks() -> Iterator[dict[str, str]]:
    """Colour and marker of one method after the other."""
    for marker in cycle(MARKERS):
        for number in range(COLOURS):
            yield {"color": f"C{number}", "fmt": marker}


def _within_axes(mean: float, std: float) -> list[list[float]]:
    """The lengths of a bar below and above, as far as there are such values."""
    return [[min(std, mean)], [min(std, 1.0 - mean)]]


def _name_below(figure: Figure, methods: Sequence[str]) -> None:
    names = [_shortened(one_line(method)) for method in methods]
    handles = [
        Line2D([], [], color=look["color"], marker=look["fmt"], linestyle="none")
        for _, look in zip(names, _looks(), strict=False)
    ]
    labels = [drawable(f" {name}") for name in names]  # with a space: matplotlib passes over a first _
    columns = max(1, min(len(names), LEGEND_LETTERS // (max(map(len, labels), default=0) + LETTERS_OF_A_MARK)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=FONT_SIZE, frameon=False)


def _shortened(name: str) -> str:
    """Of a long one the beginning and the end."""
    half = LONGEST_NAME // 2 - 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]} ... {name[-half:]}"
