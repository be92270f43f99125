"""The seven anomaly-detection metrics of one class, collected image by image.

Keys, all fractions from 0 to 1, None where the class does not define them:

- ``I-AUROC``, ``I-AP``, ``I-F1max``: of the image scores.
- ``P-AUROC``, ``P-AP``, ``P-F1max``: of all pixels of the class, pooled.
- ``AUPRO``: per-region overlap up to a false-positive rate of 0.3; ``AUPRO-99``: the same from 99 thresholds,
  as in UniMMAD's published tables.

Pixel scores are kept as float32 (other types are converted), image scores as float64; neither is squashed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from unimmad.metrics.append_buffer import GrowingArray, blocks
from unimmad.metrics.curves import aupro, aupro_sampled, ranking_metrics
from unimmad.metrics.pixel_curves import PixelCurves, pixel_curves

METRIC_KEYS = ("I-AUROC", "I-AP", "I-F1max", "P-AUROC", "P-AP", "P-F1max", "AUPRO", "AUPRO-99")

Metrics = dict[str, float | None]

EIGHT_CONNECTED = np.ones((3, 3), dtype=np.int8)
"""Which neighbours make pixels of a mask one region."""


def evaluate(
    maps: Sequence[ArrayLike] | NDArray[np.floating],
    masks: Sequence[ArrayLike | None] | NDArray,
    image_scores: Sequence[float] | NDArray,
    image_labels: Sequence[int] | NDArray,
) -> Metrics:
    """All metrics of one class.

    Args:
        maps: N anomaly maps, each H x W; sizes may differ from image to image.
        masks: N masks of the maps' sizes, anomalous where > 0; pixel metrics leave those out that are None.
        image_scores: N numbers, larger is more anomalous.
        image_labels: N times 0 (normal) or 1 (anomalous).

    Raises:
        ValueError: lengths differ, or an image that ``MetricAccumulator.add`` refuses.
    """
    lengths = {
        "maps": len(maps),
        "masks": len(masks),
        "image_scores": len(image_scores),
        "image_labels": len(image_labels),
    }
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise ValueError(f"evaluate needs one of each for every image, but got {counts}")
    accumulator = MetricAccumulator()
    for map_HW, mask_HW, score, label in zip(maps, masks, image_scores, image_labels, strict=True):
        accumulator.add(map_HW, mask_HW, score, label)
    return accumulator.compute()


class MetricAccumulator:
    """Collects the test images of one class, one at a time, in about 4 bytes a normal pixel."""

    def __init__(self, scratch_dir: Path | None = None) -> None:
        """
        Args:
            scratch_dir: a folder where pixel scores are kept in files, for classes larger than memory: about 4 bytes a
                pixel there, some megabytes of memory whatever the number of images, and the same numbers. The files
                have no names and go with the accumulator.

        Raises:
            ValueError: the folder can't be written to.
        """
        self._image_scores: list[float] = []
        self._image_labels: list[bool] = []
        self._normal_pixels = GrowingArray(np.float32, scratch_dir)
        self._anomalous_pixels = GrowingArray(np.float32, scratch_dir)
        self._pixel_regions = GrowingArray(np.int32, scratch_dir)
        self._region_sizes = GrowingArray(np.int64, scratch_dir)
        self._normal_pixels_sorted = True

    @property
    def normal(self) -> int:
        """Normal images so far."""
        return len(self._image_labels) - self.anomalous

    @property
    def anomalous(self) -> int:
        """Anomalous images so far."""
        return sum(self._image_labels)

    def add(
        self,
        map_HW: ArrayLike,
        mask_HW: ArrayLike | None,
        image_score: float,
        image_label: int,
        name: str | None = None,
        look_HW: ArrayLike | None = None,
    ) -> None:
        """Take in one image; nothing of it is kept when it is refused.

        Args:
            map_HW: anomaly map.
            mask_HW: anomalous where > 0; None: unknown, and pixel metrics leave the image out.
            image_score: larger is more anomalous.
            image_label: 0 normal, 1 anomalous.
            name: what error messages call the image, besides its number.
            look_HW: pixels that count, where > 0; the others are neither normal nor anomalous, and regions end at
                them. None: all.

        Raises:
            ValueError: NaN in score, map or mask, a map that is not H x W, a mask or ``look_HW`` of another size, a
                label not 0 or 1.
        """
        number = len(self._image_labels)
        where = f"image {number} (counted from 0)" if name is None else f"image {number} ({name})"
        scores_HW = checked_map(map_HW, where)
        anomalous_HW = None if mask_HW is None else checked_mask(mask_HW, scores_HW.shape, where)
        looked_HW = None if look_HW is None else checked_look(look_HW, scores_HW.shape, where)
        score = float(image_score)
        if math.isnan(score):
            raise ValueError(f"{where}: its score is NaN; check the model's weights and the input image")
        if image_label not in (0, 1):
            raise ValueError(f"{where}: its label is {image_label!r}; labels are 0 (normal) or 1 (anomalous)")
        self._image_scores.append(score)
        self._image_labels.append(bool(image_label))
        if anomalous_HW is not None:
            self._add_pixels(scores_HW, anomalous_HW, looked_HW)

    def merge(self, other: MetricAccumulator) -> None:
        """Take in all images of ``other``, which stays as it is."""
        assert other is not self, "an accumulator cannot be merged into itself"
        self._image_scores.extend(other._image_scores)
        self._image_labels.extend(other._image_labels)
        regions_before = len(self._region_sizes.values)
        for ours, theirs, shift in (
            (self._normal_pixels, other._normal_pixels, 0),
            (self._anomalous_pixels, other._anomalous_pixels, 0),
            (self._pixel_regions, other._pixel_regions, regions_before),
            (self._region_sizes, other._region_sizes, 0),
        ):
            values = theirs.values
            for block in blocks(len(values)):
                ours.append(values[block] + shift if shift else values[block])
        self._normal_pixels_sorted = False

    def compute(self) -> Metrics:
        """The metrics of all images so far, by the keys in ``METRIC_KEYS``; more images may follow."""
        values = (*self._image_metrics(), *self._pixel_metrics())
        return dict(zip(METRIC_KEYS, values, strict=True))

    def curves(self) -> PixelCurves | None:
        """What is drawn of the pixels so far; None where a label has no pixel."""
        anomalous_A = self._anomalous_pixels.values
        if len(self._normal_pixels.values) == 0 or len(anomalous_A) == 0:
            return None
        return pixel_curves(
            self._sorted_normal_pixels(),
            self._anomalous_pixels.sorted_copy(),
            anomalous_A,
            self._pixel_regions.values,
            self._region_sizes.values,
        )

    def _add_pixels(
        self, scores_HW: NDArray[np.float32], anomalous_HW: NDArray[np.bool_], looked_HW: NDArray[np.bool_] | None
    ) -> None:
        self._normal_pixels_sorted = False
        normal_HW = ~anomalous_HW
        if looked_HW is not None:
            anomalous_HW, normal_HW = anomalous_HW & looked_HW, normal_HW & looked_HW
        if not anomalous_HW.any():
            self._normal_pixels.append(scores_HW.reshape(-1) if looked_HW is None else scores_HW[normal_HW])
            return
        labels_HW, regions = ndimage.label(anomalous_HW, structure=EIGHT_CONNECTED)
        region_A = labels_HW[anomalous_HW] - 1
        regions_before = len(self._region_sizes.values)
        self._normal_pixels.append(scores_HW[normal_HW])
        self._anomalous_pixels.append(scores_HW[anomalous_HW])
        self._pixel_regions.append(region_A + regions_before)
        self._region_sizes.append(np.bincount(region_A, minlength=regions))

    def _image_metrics(self) -> tuple[float | None, ...]:
        scores_I = np.asarray(self._image_scores, dtype=np.float64)
        anomalous_I = np.asarray(self._image_labels, dtype=bool)
        return ranking_metrics(np.sort(scores_I[~anomalous_I]), np.sort(scores_I[anomalous_I]))

    def _pixel_metrics(self) -> tuple[float | None, ...]:
        normal_N, anomalous_A = self._sorted_normal_pixels(), self._anomalous_pixels.values
        ranking = ranking_metrics(normal_N, self._anomalous_pixels.sorted_copy())
        if len(normal_N) == 0 or len(anomalous_A) == 0:
            return (*ranking, None, None)
        regions = (self._pixel_regions.values, self._region_sizes.values)
        return (
            *ranking,
            aupro(normal_N, anomalous_A, *regions),
            aupro_sampled(normal_N, anomalous_A, *regions),
        )

    def _sorted_normal_pixels(self) -> NDArray[np.float32]:
        values_N = self._normal_pixels.values
        if not self._normal_pixels_sorted:
            values_N.sort()  # in place: the order of normal pixels carries no meaning
            self._normal_pixels_sorted = True
        return values_N


def checked_map(map_HW: ArrayLike, where: str) -> NDArray[np.float32]:
    """An anomaly map as float32; ``where`` is what the error calls its image.

    Raises:
        ValueError: not H x W, or NaN in it.
    """
    scores_HW = np.asarray(map_HW, dtype=np.float32)
    if scores_HW.ndim != 2:
        raise ValueError(f"{where}: its anomaly map has shape {scores_HW.shape}, not height x width")
    missing = int(np.isnan(scores_HW).sum())
    if missing:
        raise ValueError(
            f"{where}: {missing} of {scores_HW.size} values of its anomaly map are NaN; "
            "check the model's weights and the input image"
        )
    return scores_HW


def checked_mask(mask_HW: ArrayLike, shape: tuple[int, ...], where: str) -> NDArray[np.bool_]:
    """A mask as bool, anomalous where > 0; ``where`` is what the error calls its image.

    Raises:
        ValueError: its shape is not the map's, or NaN in it.
    """
    mask = np.asarray(mask_HW)
    if mask.shape != shape:
        raise ValueError(f"{where}: its mask has shape {mask.shape}, but its anomaly map has {shape}")
    if mask.dtype.kind == "f" and np.isnan(mask).any():
        raise ValueError(f"{where}: its mask has NaN in it; write 0 for normal pixels and more for anomalous ones")
    return mask > 0


def checked_look(look_HW: ArrayLike, shape: tuple[int, ...], where: str) -> NDArray[np.bool_]:
    """Where to look, as bool; ``where`` is what the error calls the image.

    Raises:
        ValueError: its shape is not the map's.
    """
    look = np.asarray(look_HW)
    if look.shape != shape:
        raise ValueError(f"{where}: where to look has shape {look.shape}, but its anomaly map has {shape}")
    return look > 0
