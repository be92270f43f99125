"""One class's scores as a figure: histograms, ROC and PRO curves.

Letters: I images of the class.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from unimmad.metrics.curve_points import (
    Curve,
    Histogram,
    f1max_threshold,
    histogram,
    roc_points,
)
from unimmad.metrics.curves import FPR_LIMIT
from unimmad.metrics.metrics import Metrics
from unimmad.metrics.pixel_curves import PixelCurves
from unimmad.report.drawing import ANOMALOUS_COLOUR, FONT_SIZE, NORMAL_COLOUR
from unimmad.report.figures import new_figure
from unimmad.report.glyphs import drawable

IMAGE_BINS = 24
_PANEL_INCHES = (2.7, 2.5)
_CURVE_COLOURS = {"image": "#222222", "pixel": "#e08214"}


def curve_figure(
    title: str,
    image_scores_I: NDArray[np.float64],
    anomalous_I: NDArray[np.bool_],
    pixels: PixelCurves | None,
    metrics: Metrics,
) -> Figure:
    """Image scores, ROC of images and pixels, PRO, and pixel scores, side by side.

    Args:
        title: above the figure.
        image_scores_I: one a test image, no NaN.
        anomalous_I: True where anomalous.
        pixels: None where the class has no pixel metrics; its panels then say so.
        metrics: the class's, for the legends.
    """
    figure = new_figure(4 * _PANEL_INCHES[0], _PANEL_INCHES[1])
    figure.suptitle(drawable(title), fontsize=10, fontweight="bold")
    patches = [Patch(color=NORMAL_COLOUR, label="normal"), Patch(color=ANOMALOUS_COLOUR, label="anomalous")]
    figure.legend(handles=patches, loc="upper left", ncols=2, fontsize=FONT_SIZE - 1, frameon=False)
    images_ax, roc_ax, pro_ax, pixels_ax = figure.subplots(1, 4)
    normal_N, anomalous_A = np.sort(image_scores_I[~anomalous_I]), np.sort(image_scores_I[anomalous_I])
    image_threshold = f1max_threshold(normal_N, anomalous_A) if len(anomalous_A) else None
    _draw_histogram(images_ax, "image scores", histogram(normal_N, anomalous_A, IMAGE_BINS), image_threshold)
    image_roc = roc_points(normal_N, anomalous_A) if len(normal_N) and len(anomalous_A) else None
    _draw_roc(roc_ax, image_roc, None if pixels is None else Curve(pixels.fpr, pixels.tpr), metrics)
    _draw_pro(pro_ax, None if pixels is None else Curve(pixels.fpr, pixels.pro), metrics)
    if pixels is None:
        _head(pixels_ax, "pixel scores")
        _say(pixels_ax, "n/a: masks or a label are missing")
    else:
        _draw_histogram(pixels_ax, "pixel scores", pixels.histogram, pixels.threshold, logarithmic=True)
    return figure


def _draw_histogram(
    ax: Axes, title: str, scores: Histogram, threshold: float | None, logarithmic: bool = False
) -> None:
    """Each label's share of scores in each bin; the dashed line is the F1max threshold."""
    _head(ax, title)
    label = "score"
    for share_B, colour in ((scores.normal_B, NORMAL_COLOUR), (scores.anomalous_B, ANOMALOUS_COLOUR)):
        if share_B.any():
            ax.stairs(share_B, scores.edge_B1, fill=True, alpha=0.45, color=colour)
            ax.stairs(share_B, scores.edge_B1, color=colour, linewidth=1)
    if threshold is not None and np.isfinite(threshold):
        ax.axvline(threshold, color="0.2", linestyle="--", linewidth=1)
        label = f"score (dashed: F1max at {threshold:.3g})"
    if logarithmic:
        ax.set_yscale("log")
    ax.set_xlabel(label, fontsize=FONT_SIZE)
    ax.set_ylabel("share of its label", fontsize=FONT_SIZE)


def _draw_roc(ax: Axes, image: Curve | None, pixel: Curve | None, metrics: Metrics) -> None:
    _head(ax, "ROC")
    _square(ax, "true-positive rate")
    ax.plot([0, 1], [0, 1], color="0.8", linewidth=0.8, linestyle=":")
    for name, key, curve in (("image", "I-AUROC", image), ("pixel", "P-AUROC", pixel)):
        if curve is None:
            ax.plot([], [], color=_CURVE_COLOURS[name], label=f"{key} n/a")
        else:
            ax.plot(*curve, color=_CURVE_COLOURS[name], linewidth=1.4, label=f"{key} {_shown(metrics[key])}")
    _add_legend(ax)


def _draw_pro(ax: Axes, curve: Curve | None, metrics: Metrics) -> None:
    """The whole curve; the part that AUPRO measures is shaded."""
    _head(ax, "PRO")
    if curve is None:
        _say(ax, "n/a: masks or a label are missing")
        return
    _square(ax, "per-region overlap")
    within_P = curve.fpr_P <= FPR_LIMIT
    at_limit = float(np.interp(FPR_LIMIT, curve.fpr_P, curve.value_P))
    fpr_P = np.append(curve.fpr_P[within_P], FPR_LIMIT)
    value_P = np.append(curve.value_P[within_P], at_limit)
    ax.fill_between(fpr_P, value_P, color=_CURVE_COLOURS["pixel"], alpha=0.2, linewidth=0)
    ax.axvline(FPR_LIMIT, color="0.6", linewidth=0.8, linestyle=":")
    ax.plot(*curve, color=_CURVE_COLOURS["pixel"], linewidth=1.4, label=f"AUPRO {_shown(metrics['AUPRO'])}")
    _add_legend(ax)


def _square(ax: Axes, ylabel: str) -> None:
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.set_xlabel("false-positive rate", fontsize=FONT_SIZE)
    ax.set_ylabel(ylabel, fontsize=FONT_SIZE)


def _head(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=FONT_SIZE + 1)
    ax.tick_params(labelsize=FONT_SIZE - 1)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _say(ax: Axes, text: str) -> None:
    ax.set(xticks=[], yticks=[])
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=FONT_SIZE, color="0.4")


def _add_legend(ax: Axes) -> None:
    ax.legend(fontsize=FONT_SIZE - 1, loc="lower right", frameon=True, framealpha=0.8, edgecolor="none")


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
