"""What the panels of scores hold."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from unimmad.metrics.metrics import METRIC_KEYS, MetricAccumulator
from unimmad.report.curve_figures import curve_figure
from unimmad.report.figures import save_figure

SCORES = np.array([0.1, 0.4, 0.2, 0.9, 0.35])
LABELS = np.array([False, False, False, True, True])


@pytest.fixture(scope="module")
def collected():
    rng = np.random.default_rng(0)
    metrics = MetricAccumulator()
    for score, label in zip(SCORES, LABELS, strict=True):
        mask_HW = np.zeros((16, 16), bool)
        mask_HW[3:8, 4:9] = label
        metrics.add(rng.random((16, 16)) + mask_HW, mask_HW, score, int(label))
    return metrics.curves(), metrics.compute()


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_curves_are_drawn_with_their_areas(collected):
    pixels, metrics = collected
    images, roc, pro, pixel_scores = curve_figure("metal/plate", SCORES, LABELS, pixels, metrics).axes
    assert legend_of(roc) == [f"I-AUROC {metrics['I-AUROC']:.3f}", f"P-AUROC {metrics['P-AUROC']:.3f}"]
    assert legend_of(pro) == [f"AUPRO {metrics['AUPRO']:.3f}"]
    image_roc, pixel_roc = roc.lines[-2:]
    np.testing.assert_allclose(image_roc.get_xdata(), [0, 0, 1 / 3, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(image_roc.get_ydata(), [0, 1 / 2, 1 / 2, 1, 1, 1])
    np.testing.assert_array_equal(pixel_roc.get_ydata(), pixels.tpr)
    np.testing.assert_array_equal(pro.lines[-1].get_ydata(), pixels.pro)
    assert images.get_xlabel() == "score (dashed: F1max at 0.35)"
    assert pixel_scores.get_xlabel() == f"score (dashed: F1max at {pixels.threshold:.3g})"
    assert pixel_scores.get_yscale() == "log"


def test_what_is_undefined_is_said(tmp_path):
    metrics = dict.fromkeys(METRIC_KEYS)
    figure = curve_figure("metal/$plate$", SCORES[:3], LABELS[:3], None, metrics)
    images, roc, pro, pixel_scores = figure.axes
    assert images.get_xlabel() == "score"
    assert legend_of(roc) == ["I-AUROC n/a", "P-AUROC n/a"]
    for ax in (pro, pixel_scores):
        assert [text.get_text() for text in ax.texts] == ["n/a: masks or a label are missing"]


def test_the_figure_is_written_as_png(collected, tmp_path):
    pixels, metrics = collected
    save_figure(curve_figure("metal/$plate$", SCORES, LABELS, pixels, metrics), tmp_path / "new" / "plate.png")
    with Image.open(tmp_path / "new" / "plate.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 3 * picture.height
