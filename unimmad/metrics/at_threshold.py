"""What one threshold for images and one for pixels come to on a class's test images: alarms, SegF1, defects found.

Everything is a count, added up image by image, so it is exact, needs no memory, and joins in any order. The threshold
for pixels is MVTec AD 2's: the mean of the normal images' maps plus three standard deviations. At it

- **SegF1** is the F1 of all pixels of the class, pooled, where a map's value is above the threshold;
- a **defect** (an 8-connected region of an image's mask) is found where any of its pixels is above it, by its size in
  pixels of the map;
- a **false alarm** is an 8-connected region of pixels above it none of which is marked; they are counted by image.

At the threshold for images an image is called anomalous where its score is above it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from unimmad.metrics.metrics import EIGHT_CONNECTED, checked_look, checked_map, checked_mask

SIZE_LIMITS = (16, 64, 256, 1024)
"""Pixels of a map from which on a defect counts as the next larger kind: squares of 4, 8, 16 and 32."""
SIZE_NAMES = (f"<{SIZE_LIMITS[0]}", *(f"{limit}+" for limit in SIZE_LIMITS))
"""Each kind reaches up to the next one."""
DEVIATIONS = 3
"""Standard deviations above the mean: MVTec AD 2's rule."""


class Spread(NamedTuple):
    """Mean and standard deviation of values that come in pieces, such as the maps of a class's normal images."""

    values: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of the squared differences from the mean."""

    @classmethod
    def of(cls, values: ArrayLike) -> Spread:
        """Of some values, in float64."""
        array = np.asarray(values, dtype=np.float64)
        if not array.size:
            return cls()
        mean = float(array.mean())
        return cls(array.size, mean, float(np.square(array - mean).sum()))

    def joined(self, other: Spread) -> Spread:
        """Of the values of both."""
        both = self.values + other.values
        if not both:
            return Spread()
        apart = other.mean - self.mean
        mean = self.mean + apart * other.values / both
        return Spread(both, mean, self.squares + other.squares + apart * apart * self.values * other.values / both)

    def threshold(self) -> float | None:
        """Mean plus ``DEVIATIONS`` standard deviations; None without a value."""
        return self.mean + DEVIATIONS * math.sqrt(self.squares / self.values) if self.values else None


@dataclass(frozen=True)
class AtThreshold:
    """The counts of some images. Shares of nothing are None."""

    normal: int = 0
    """Normal images for which a threshold holds."""
    normal_above: int = 0
    """Those of them that are called anomalous."""
    anomalous: int = 0
    """Anomalous images for which a threshold holds."""
    anomalous_above: int = 0
    undecided: int = 0
    """Images for which none holds."""
    segmented: int = 0
    """Images with a threshold for pixels and a mask."""
    pixels_hit: int = 0
    """Marked pixels above the threshold."""
    pixels_false: int = 0
    """Pixels above it that are not marked."""
    pixels_missed: int = 0
    false_regions: int = 0
    """Regions above it without a marked pixel."""
    defects: tuple[int, ...] = (0,) * len(SIZE_NAMES)
    """Regions of masks by size, in the order of ``SIZE_NAMES``."""
    defects_found: tuple[int, ...] = (0,) * len(SIZE_NAMES)

    def __add__(self, other: AtThreshold) -> AtThreshold:
        return AtThreshold(*(_sum(ours, theirs) for ours, theirs in zip(astuple(self), astuple(other), strict=True)))

    @property
    def image_false_alarm_rate(self) -> float | None:
        """Share of the normal images that are called anomalous."""
        return _share(self.normal_above, self.normal)

    @property
    def image_recall(self) -> float | None:
        """Share of the anomalous images that are called so."""
        return _share(self.anomalous_above, self.anomalous)

    @property
    def seg_f1(self) -> float | None:
        """F1 of the pooled pixels; None where none is marked."""
        if not self.pixels_hit + self.pixels_missed:
            return None
        return _share(2 * self.pixels_hit, 2 * self.pixels_hit + self.pixels_false + self.pixels_missed)

    @property
    def false_alarms_an_image(self) -> float | None:
        """Regions above the threshold for pixels without a marked pixel, a segmented image; normal or not."""
        return _share(self.false_regions, self.segmented)

    @property
    def defect_recall(self) -> float | None:
        """Share of all defects that are found."""
        return _share(sum(self.defects_found), sum(self.defects))

    @property
    def defect_recall_by_size(self) -> dict[str, float | None]:
        """The same by size, keyed by ``SIZE_NAMES``."""
        by_size = zip(SIZE_NAMES, self.defects_found, self.defects, strict=True)
        return {name: _share(found, total) for name, found, total in by_size}

    def entry(self) -> dict[str, Any]:
        """The counts and what follows from them, in JSON's types."""
        counts = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **counts,
            "defect_sizes": list(SIZE_NAMES),
            "image_false_alarm_rate": self.image_false_alarm_rate,
            "image_recall": self.image_recall,
            "SegF1": self.seg_f1,
            "false_alarms_an_image": self.false_alarms_an_image,
            "defect_recall": self.defect_recall,
            "defect_recall_by_size": list(self.defect_recall_by_size.values()),
        }


def joined(counts: Iterable[AtThreshold | None]) -> AtThreshold | None:
    """Of all that are there; None where none is."""
    total: AtThreshold | None = None
    for of_one in counts:
        if of_one is not None:
            total = of_one if total is None else total + of_one
    return total


def count_image(
    map_HW: ArrayLike,
    mask_HW: ArrayLike | None,
    image_score: float,
    image_label: int,
    image_threshold: float | None,
    pixel_threshold: float | None,
    look_HW: ArrayLike | None = None,
) -> AtThreshold:
    """One image's counts.

    Args:
        map_HW: anomaly map.
        mask_HW: anomalous where > 0; None: unknown, and the image has no counts of pixels and regions.
        image_score: called anomalous where it is above ``image_threshold``.
        image_label: 0 normal, 1 anomalous.
        image_threshold: None: none holds for this image.
        pixel_threshold: a pixel is called anomalous where the map is above it; None: none holds.
        look_HW: pixels that count, where > 0; None: all.

    Raises:
        ValueError: NaN in the map or mask, or shapes that differ.
    """
    above = image_threshold is not None and image_score > image_threshold
    held = image_threshold is not None
    of_image = AtThreshold(
        normal=int(held and not image_label),
        normal_above=int(above and not image_label),
        anomalous=int(held and bool(image_label)),
        anomalous_above=int(above and bool(image_label)),
        undecided=int(not held),
    )
    if pixel_threshold is None or mask_HW is None:
        return of_image
    scores_HW = checked_map(map_HW, "this image")
    marked_HW = checked_mask(mask_HW, scores_HW.shape, "this image")
    above_HW = scores_HW > np.float64(pixel_threshold)  # a Python number would be rounded to the map's float32
    if look_HW is not None:
        looked_HW = checked_look(look_HW, scores_HW.shape, "this image")
        marked_HW, above_HW = marked_HW & looked_HW, above_HW & looked_HW
    return of_image + _count_pixels(marked_HW, above_HW)


def _count_pixels(marked_HW: NDArray[np.bool_], above_HW: NDArray[np.bool_]) -> AtThreshold:
    hit_HW = marked_HW & above_HW
    hit = int(hit_HW.sum())
    defect_HW, defects = ndimage.label(marked_HW, structure=EIGHT_CONNECTED)
    size_R = np.bincount(defect_HW.ravel(), minlength=defects + 1)[1:]
    found_R = np.bincount(defect_HW[hit_HW], minlength=defects + 1)[1:] > 0
    kind_R = np.searchsorted(SIZE_LIMITS, size_R, side="right")
    alarm_HW, alarms = ndimage.label(above_HW, structure=EIGHT_CONNECTED)
    return AtThreshold(
        segmented=1,
        pixels_hit=hit,
        pixels_false=int(above_HW.sum()) - hit,
        pixels_missed=int(marked_HW.sum()) - hit,
        false_regions=alarms - len(np.unique(alarm_HW[hit_HW])),
        defects=_by_kind(kind_R),
        defects_found=_by_kind(kind_R[found_R]),
    )


def _by_kind(kind_R: NDArray[np.integer]) -> tuple[int, ...]:
    return tuple(np.bincount(kind_R, minlength=len(SIZE_NAMES)).tolist())


def _sum(ours: Any, theirs: Any) -> Any:
    return tuple(map(sum, zip(ours, theirs, strict=True))) if isinstance(ours, tuple) else ours + theirs


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
