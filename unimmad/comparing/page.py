"""The page of a comparison: tables, quality against cost, and the samples that methods disagree on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from unimmad.comparing.tables import Compared
from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.drawing import FONT_SIZE
from unimmad.report.figures import fitted, new_figure, save_figure
from unimmad.report.html_page import Picture, render_page
from unimmad.serialization.atomic_write import write_text_aside

PAGE = "comparison.html"
PLOT = "quality_and_cost.png"
PLOTTED = ("I-AUROC", "P-AUROC", "AUPRO")
_NAME_INCHES = 1.8


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
        plot=Picture(
            plot, "Mean over datasets against samples scored in a second; bars: standard deviation over seeds."
        ),
        disputed=disputed,
    )
    write_text_aside(page, text)
    return page


def quality_and_cost(compared: Compared) -> Figure:
    """A panel for each of a few metrics: its mean over datasets against speed, a point a method."""
    assert set(PLOTTED) <= set(METRIC_KEYS)
    figure = new_figure(4.0 * len(PLOTTED), 3.4)
    of_methods = compared.of_all()
    speed = {
        method.method: sum(result.cost.images_per_second for result in method.results) / len(method.results)
        for method in compared.methods
    }
    for ax, key in zip(figure.subplots(1, len(PLOTTED), squeeze=False)[0], PLOTTED, strict=True):
        for number, (method, metrics) in enumerate(of_methods.items()):
            spread = metrics[key]
            if spread is None:
                continue
            ax.errorbar(speed[method], spread.mean, yerr=spread.std, fmt="o", color=f"C{number}", capsize=3)
            place = (speed[method], spread.mean)
            name = fitted(method, _NAME_INCHES)
            text = ax.annotate(name, place, (5, 4), textcoords="offset points", fontsize=FONT_SIZE)
            text.set_in_layout(False)  # names beyond the panel would leave it no room
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.margins(0.35, 0.2)
        ax.set_xlabel("samples a second", fontsize=FONT_SIZE)
        ax.set_title(f"mean {key}", fontsize=FONT_SIZE + 1)
        ax.tick_params(labelsize=FONT_SIZE - 1, which="both")
        ax.grid(alpha=0.3)
    return figure
