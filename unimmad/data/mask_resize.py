"""A mask at the size that its image is scored at, and what of it is lost on the way.

Letters: H x W pixels of the stored mask, h x w of the model's square.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from unimmad.data.views import Box, View, largest_in_area, padded

MaskRule = Literal["area", "nearest", "bilinear"]
"""``area``: a pixel is anomalous where any of its area is, so that no defect vanishes. ``nearest``: where the stored
pixel at its middle is. ``bilinear``: where the bilinear mean is above 0."""

_EIGHT_CONNECTED = np.ones((3, 3), dtype=np.int8)


class MaskLoss(NamedTuple):
    """What of a mask's regions (8-connected) no pixel shows after resizing."""

    regions: int = 0
    lost: int = 0

    @property
    def empties(self) -> bool:
        """Whether nothing is left of a mask that marked something."""
        return 0 < self.regions == self.lost


NOTHING_LOST = MaskLoss()


def resized_mask(marked_HW: NDArray[np.bool_], view: View, rule: MaskRule = "nearest") -> NDArray[np.bool_]:
    """The mask of a view's picture: bool, h x w; its padding is not anomalous."""
    seen = marked_HW[view.source.pixels]
    if rule == "area":
        inner = largest_in_area(seen, (view.target.height, view.target.width))
    else:
        filter_ = Image.Resampling.NEAREST if rule == "nearest" else Image.Resampling.BILINEAR
        image = Image.fromarray(seen.astype(np.uint8) * 255)
        inner = np.asarray(image.resize((view.target.width, view.target.height), filter_)) > 0
    return padded(inner, view, False)


def mask_loss(marked_HW: NDArray[np.bool_], resized_hw: NDArray[np.bool_], view: View) -> MaskLoss:
    """Hold a resized mask against the stored one: which regions have no marked pixel left.

    Args:
        marked_HW: as stored.
        resized_hw: what ``resized_mask`` made of it.
        view: the one that it was made for.
    """
    labels_HW, regions = ndimage.label(marked_HW, structure=_EIGHT_CONNECTED)
    found = (Box(r.start, c.start, r.stop - r.start, c.stop - c.start) for r, c in ndimage.find_objects(labels_HW))
    return MaskLoss(regions, sum(not _shown(region, resized_hw, view) for region in found))


def _shown(region: Box, resized_hw: NDArray[np.bool_], view: View) -> bool:
    """Whether any pixel is marked that the region's bounding box reaches."""
    rows = _reached(region.top, region.height, view.source.top, view.source.height, view.target.height)
    columns = _reached(region.left, region.width, view.source.left, view.source.width, view.target.width)
    return bool(resized_hw[view.target.pixels][rows, columns].any())


def _reached(first: int, length: int, source: int, of: int, target: int) -> slice:
    start, stop = max(0, first - source), min(of, first + length - source)
    if start >= stop:
        return slice(0, 0)
    return slice(start * target // of, -(-stop * target // of))
