"""The metrics of one class against scikit-learn and a plain AUPRO, on invented maps.

CPU time is the process's, of all threads. Memory is what is allocated beyond the maps and masks themselves, at its
peak, divided by the number of pixels.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unimmad.metrics.metrics import MetricAccumulator, Metrics, evaluate
from unimmad.report.table import Table

HELP = "exact metrics against scikit-learn and a plain AUPRO: CPU time, memory, growth"
FPR_LIMIT = 0.3
GROWTH = (0.25, 0.5, 1.0)
"""Shares of the images at which time and memory are measured."""
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Images:
    """One class: N maps and masks, N scores and labels."""

    maps_NHW: NDArray[np.float32]
    masks_NHW: NDArray[np.uint8]
    scores_N: NDArray[np.float64]
    labels_N: NDArray[np.int64]

    def first(self, count: int) -> Images:
        return Images(self.maps_NHW[:count], self.masks_NHW[:count], self.scores_N[:count], self.labels_N[:count])


@dataclass(frozen=True)
class Cost:
    """What one computation took, and what it gave."""

    name: str
    images: int
    pixels: int
    cpu_seconds: float
    bytes_per_pixel: float | None
    """None: not measured."""
    metrics: Metrics


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=400, help="how many are made (default: 400)")
    parser.add_argument("--size", type=int, default=256, help="height and width of each")
    parser.add_argument("--seed", type=int, default=0, help="of the maps and masks (default: 0)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of ours, of which the fastest counts")


def run(arguments: argparse.Namespace) -> str:
    """Measure and give the table.

    Raises:
        ValueError: scikit-learn is missing, sizes are too small, or the two ways give different numbers.
    """
    if arguments.images < 8 or arguments.size < 16 or arguments.repeats < 1:
        raise ValueError("give at least 8 --images of --size 16 and 1 of --repeats")
    images = invented_images(arguments.images, arguments.size, arguments.seed)
    counts = [max(8, round(arguments.images * share)) for share in GROWTH]
    ours = [_cost("unimmad", images.first(count), _ours, arguments.repeats) for count in counts]
    with tempfile.TemporaryDirectory() as folder:
        spilled = _cost("unimmad, spilled to disk", images, lambda data: _spilled(data, Path(folder)), 1)
    plain = _cost("scikit-learn + plain AUPRO", images, reference_metrics, 1, memory=False)
    for found in (ours[-1], spilled):
        _check_equal(found, plain)
    return benchmark_table([*ours, spilled, plain])


def benchmark_table(costs: Sequence[Cost]) -> str:
    """Markdown; the last row is what the ratio compares with."""
    heads = ("", "images", "million pixels", "CPU s", "s / million pixels", "bytes / pixel beyond the input")
    rows = []
    for cost in costs:
        millions = cost.pixels / 1e6
        seconds = (f"{cost.cpu_seconds:.2f}", f"{cost.cpu_seconds / millions:.4f}")
        memory = "" if cost.bytes_per_pixel is None else f"{cost.bytes_per_pixel:.2f}"
        rows.append((cost.name, str(cost.images), f"{millions:.1f}", *seconds, memory))
    reference = costs[-1]
    whole = next(cost for cost in reversed(costs[:-1]) if cost.name == costs[0].name)
    times = f"{reference.name} takes {reference.cpu_seconds / whole.cpu_seconds:.0f} times the CPU time"
    return f"{Table(heads, rows).to_markdown()}\n{times}"


def invented_images(count: int, size: int, seed: int) -> Images:
    """Smooth maps; every other image has a few anomalous rectangles, 2% of its pixels or so, that score higher."""
    rng = np.random.default_rng(seed)
    maps_NHW = np.empty((count, size, size), dtype=np.float32)
    masks_NHW = np.zeros((count, size, size), dtype=np.uint8)
    side = max(2, size // 12)
    for number in range(count):
        noise_HW = rng.standard_normal((size, size), dtype=np.float32)
        if number % 2:
            for row, column in rng.integers(0, size - side, (3, 2)):
                masks_NHW[number, row : row + side, column : column + side] = 255
        maps_NHW[number] = ndimage.uniform_filter(noise_HW, 5) + 0.2 * (masks_NHW[number] > 0)
    scores_N = maps_NHW.max(axis=(1, 2)).astype(np.float64)
    return Images(maps_NHW, masks_NHW, scores_N, np.arange(count) % 2)


def reference_metrics(images: Images) -> Metrics:
    """The metrics as they are usually computed: scikit-learn over all pixels, and one sort of them for AUPRO.

    Raises:
        ValueError: scikit-learn is missing.
    """
    truth_P, pixels_P = images.masks_NHW.reshape(-1) > 0, images.maps_NHW.reshape(-1)
    image_values = _scikit_learn(images.labels_N > 0, images.scores_N)
    values = (*image_values, *_scikit_learn(truth_P, pixels_P), _plain_aupro(images))
    return dict(zip(("I-AUROC", "I-AP", "I-F1max", "P-AUROC", "P-AP", "P-F1max", "AUPRO"), values, strict=True))


def _scikit_learn(truth: NDArray[np.bool_], scores: NDArray[np.floating]) -> tuple[float, float, float]:
    try:
        from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score
    except ImportError:
        raise ValueError('the reference needs scikit-learn: pip install -e ".[dev]"') from None
    precision, recall, _ = precision_recall_curve(truth, scores)
    sums = np.maximum(precision + recall, np.finfo(np.float64).tiny)
    f1max = float((2 * precision * recall / sums).max())
    return float(roc_auc_score(truth, scores)), float(average_precision_score(truth, scores)), f1max


def _plain_aupro(images: Images) -> float:
    """All pixels sorted by falling score; what each adds to the overlap and to the false-positive rate, summed up."""
    overlap_NHW = np.zeros(images.maps_NHW.shape)
    regions = 0
    for overlap_HW, mask_HW in zip(overlap_NHW, images.masks_NHW, strict=True):
        labels_HW, found = ndimage.label(mask_HW > 0, structure=np.ones((3, 3)))
        sizes = np.bincount(labels_HW.reshape(-1))
        inside_HW = labels_HW > 0
        overlap_HW[inside_HW] = 1.0 / sizes[labels_HW[inside_HW]]
        regions += found
    order_P = np.argsort(-images.maps_NHW.reshape(-1), kind="stable")
    sorted_P = images.maps_NHW.reshape(-1)[order_P]
    false_P = (images.masks_NHW.reshape(-1) == 0)[order_P]
    last_of_ties_P = np.append(sorted_P[1:] != sorted_P[:-1], True)
    fpr_P = np.append(0.0, (np.cumsum(false_P) / false_P.sum())[last_of_ties_P])
    pro_P = np.append(0.0, (np.cumsum(overlap_NHW.reshape(-1)[order_P]) / regions)[last_of_ties_P])
    inside_P = fpr_P <= FPR_LIMIT
    x_P = np.append(fpr_P[inside_P], FPR_LIMIT)
    y_P = np.append(pro_P[inside_P], np.interp(FPR_LIMIT, fpr_P, pro_P))
    return float(np.trapezoid(y_P, x_P)) / FPR_LIMIT


def _ours(images: Images) -> Metrics:
    return evaluate(images.maps_NHW, images.masks_NHW, images.scores_N, images.labels_N)


def _spilled(images: Images, folder: Path) -> Metrics:
    accumulator = MetricAccumulator(scratch_dir=folder)
    for image in zip(images.maps_NHW, images.masks_NHW, images.scores_N, images.labels_N, strict=True):
        accumulator.add(*image)
    return accumulator.compute()


def _cost(name: str, images: Images, compute: Callable[[Images], Metrics], repeats: int, memory: bool = True) -> Cost:
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        metrics = compute(images)
        seconds.append(time.process_time() - start)
    pixels = images.maps_NHW.size
    peak = _peak_bytes(lambda: compute(images)) / pixels if memory else None
    return Cost(name, len(images.maps_NHW), pixels, min(seconds), peak, metrics)


def _peak_bytes(compute: Callable[[], object]) -> int:
    """Measured apart from the time, since tracing costs some."""
    tracemalloc.start()
    try:
        compute()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _check_equal(found: Cost, reference: Cost) -> None:
    for key, value in reference.metrics.items():
        ours = found.metrics[key]
        if ours is None or value is None or abs(ours - value) > TOLERANCE:
            raise ValueError(f"{key} is {ours} by {found.name}, but {value} by {reference.name}")
