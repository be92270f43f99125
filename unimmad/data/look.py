"""Where to look in one image: what a region of interest weighs in each view of it, and in its own pixels.

A region is laid over an image as a whole, so a view sees of it what it sees of the image: a crop crops it, a tile has
its own piece, and padding weighs nothing.

Letters: M modalities, C = 3 channels, H x W pixels of a stored image, h x w of what is made of a part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unimmad.data.foreground import foreground
from unimmad.data.index import ModalityKind
from unimmad.data.roi import FULL, MOST_SKEW, Roi
from unimmad.data.views import Box, View, padded


@dataclass(frozen=True)
class Look:
    """A region of interest, laid over one image."""

    roi: Roi
    shape: tuple[int, int]
    """H and W."""
    seen: Box
    """The part of the image that is scored at all; nothing else is looked at."""
    object_hw: NDArray[np.bool_] | None = None
    """The object in ``seen``, by the rule ``foreground``, in any size; None where the rule takes no part."""

    def weights(self, part: Box, size: tuple[int, int]) -> NDArray[np.float32]:
        """What a part of ``seen`` weighs, in ``size`` (height and width), by the nearest pixel: 0 (not looked at) to 1.

        What is thinner than one pixel may be lost, but not all of it.
        """
        levels = Image.fromarray(self.roi.levels())
        box = _within(part, Box(0, 0, *self.shape), levels.size)
        levels_hw = _sampled(levels, box, size, Image.Resampling.NEAREST)
        if not levels_hw.any():
            levels_hw = _sampled(levels, box, size, Image.Resampling.BOX)
        weights_hw = levels_hw.astype(np.float32) / np.float32(FULL)
        if self.object_hw is not None:
            object_ = Image.fromarray(self.object_hw.astype(np.uint8))
            box = _within(part, self.seen, object_.size)
            weights_hw *= _sampled(object_, box, size, Image.Resampling.NEAREST)
        return weights_hw

    def of_view(self, view: View) -> Tensor:
        """float32, h x w: of each pixel of a view's picture; 0 in its padding."""
        inner = self.weights(view.source, (view.target.height, view.target.width))
        return torch.from_numpy(padded(inner, view, 0.0))

    def stored(self) -> Tensor:
        """float32, H x W: of each pixel of the image."""
        weights_HW = np.zeros(self.shape, dtype=np.float32)
        weights_HW[self.seen.pixels] = self.weights(self.seen, (self.seen.height, self.seen.width))
        return torch.from_numpy(weights_HW)

    def resized(self, size: tuple[int, int]) -> NDArray[np.float32]:
        """Of the whole image, stretched to another size."""
        everything = Box(0, 0, *self.shape)
        if self.seen == everything:
            return self.weights(everything, size)
        stored = Image.fromarray(self.stored().numpy())
        return _sampled(stored, (0, 0, *stored.size), size, Image.Resampling.NEAREST)


def look_at(
    roi: Roi | None,
    view: View,
    picture: Callable[[], Tensor],
    kinds: Iterable[ModalityKind],
    shape: tuple[int, ...],
    where: str,
) -> Look | None:
    """Lay a region of interest over an image; None where all of it is looked at.

    Args:
        roi: of its class.
        view: of all that is scored of it, as one piece of the model's size.
        picture: gives this view's normalised images, M x C x h x w; asked where the rule ``foreground`` looks at them.
        kinds: of its modalities.
        shape: H and W of the stored image.
        where: the sample, for messages.

    Raises:
        ValueError: the image's shape is not the region's, or nothing is left to look at.
    """
    if roi is None:
        return None
    height, width = shape[:2]
    look, size = Look(roi, (height, width), view.source), (view.target.height, view.target.width)
    try:
        aspect = roi.aspect or width / height
        weights_hw = look.weights(view.source, size)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not 1 / MOST_SKEW <= width / height / aspect <= MOST_SKEW:
        raise ValueError(
            f"{where} is {width} x {height} pixels, but its region of interest is drawn on a picture of another shape "
            f"(width to height {aspect:.3g} instead of {width / height:.3g}); draw it on one of these images"
        )
    if not weights_hw.any():
        raise ValueError(
            f"{where}: the region of interest leaves no pixel to look at in {size[1]} x {size[0]}; draw it larger"
        )
    if roi.foreground:
        object_hw = foreground(picture()[..., *view.target.pixels].numpy(), tuple(kinds))
        if (weights_hw[object_hw] > 0).any():  # else the rule contradicts what was drawn, which is surer
            return Look(roi, look.shape, look.seen, object_hw)
    return look


def _within(part: Box, outer: Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A part of ``outer`` as left, top, right, bottom in a picture of ``outer`` of this width and height."""
    width, height = size
    left, top = (part.left - outer.left) * width / outer.width, (part.top - outer.top) * height / outer.height
    right, bottom = left + part.width * width / outer.width, top + part.height * height / outer.height
    return left, top, min(right, width), min(bottom, height)


def _sampled(
    image: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int], filter_: Image.Resampling
) -> NDArray:
    return np.asarray(image.resize((size[1], size[0]), filter_, box=box))
