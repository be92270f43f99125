"""Which part of a stored image a model sees, and where it lies in the model's square: the way there and back.

The model's images are square, people's are not. A *view* is one rectangle of the stored image (its *source*), resized
to one rectangle of the model's square (its *target*); what the target leaves free is padding. Plain resizing stretches
the whole image over the whole square (the paper), a letterbox keeps its aspect and pads, a crop takes its middle
square, and tiles are many small views of one image. Both rectangles are whole pixels, so each way has an exact way
back.

Letters: H x W pixels of the stored image, h x w of what a view makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Aspect = Literal["stretch", "letterbox", "crop"]
"""How an image that is not square becomes one."""
Resolution = Literal["model", "original"]
"""At what size pixels are measured: the model's, or that which an image is stored in."""


class Box(NamedTuple):
    """A rectangle of whole pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def pixels(self) -> tuple[slice, slice]:
        """As an index of rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


@dataclass(frozen=True)
class View:
    """One rectangle of a stored image, and where it lies in the picture that is made of it."""

    source: Box
    """Of the stored image."""
    target: Box
    """Of the picture."""
    size: tuple[int, int]
    """Height and width of the picture."""

    @property
    def fills(self) -> bool:
        """Whether nothing of the picture is padding."""
        return self.target == Box(0, 0, *self.size)

    @property
    def native(self) -> View:
        """The one that shows the same part of the image as it is stored: without padding, nothing resized."""
        size = self.source.height, self.source.width
        return View(self.source, Box(0, 0, *size), size)

    @property
    def shrinking(self) -> float:
        """How many stored pixels fall on one of the picture, along the side where that is more."""
        return max(self.source.height / self.target.height, self.source.width / self.target.width)


def whole(shape: tuple[int, ...], size: int | tuple[int, int], aspect: Aspect = "stretch") -> View:
    """The view of an image as one piece.

    Args:
        shape: of the stored image; its first two numbers are H, W.
        size: of the picture: the side of a square, or height and width.
        aspect: ``crop`` sees the middle of the image only.
    """
    height, width = shape[:2]
    rows, columns = (size, size) if isinstance(size, int) else size
    everything, picture = Box(0, 0, height, width), Box(0, 0, rows, columns)
    if aspect == "stretch":
        return View(everything, picture, (rows, columns))
    if aspect == "letterbox":
        scale = min(rows / height, columns / width)
        inner = max(1, round(height * scale)), max(1, round(width * scale))
        return View(everything, _centred(inner, (rows, columns)), (rows, columns))
    scale = min(height / rows, width / columns)
    seen = max(1, round(rows * scale)), max(1, round(columns * scale))
    return View(_centred(seen, (height, width)), picture, (rows, columns))


def _centred(inner: tuple[int, int], outer: tuple[int, int]) -> Box:
    return Box((outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2, *inner)


@dataclass(frozen=True)
class Tiles:
    """Which tiles cover an image that is larger than one."""

    size: int
    """Side in pixels of the stored image."""
    overlap: int
    """Pixels that neighbours share, at least."""
    whole: bool = False
    """Whether the image as one piece is one more view."""


@dataclass(frozen=True)
class Geometry:
    """By which views images are looked at; the default is the paper's plain resize."""

    aspect: Aspect = "stretch"
    tiles: Tiles | None = None

    def views(self, shape: tuple[int, ...], image_size: int) -> tuple[View, ...]:
        """All views of an image in a fixed order: it as one piece where that is one of them, then its tiles by rows.

        An image up to the size of a tile has itself as its only view. Along a side that is shorter than a tile,
        tiles are as short.
        """
        one = whole(shape, image_size, self.aspect)
        if self.tiles is None or max(shape[:2]) <= self.tiles.size:
            return (one,)
        height, width = (min(self.tiles.size, side) for side in shape[:2])
        inside = whole((height, width), image_size, "stretch" if self.aspect == "stretch" else "letterbox")
        tiles = tuple(
            View(Box(top, left, height, width), inside.target, inside.size)
            for top in _starts(shape[0], height, self.tiles.overlap)
            for left in _starts(shape[1], width, self.tiles.overlap)
        )
        return (one, *tiles) if self.tiles.whole else tiles

    def outline(self, shape: tuple[int, ...], image_size: int) -> View:
        """All that is scored of an image, as one piece of the model's size."""
        views = self.views(shape, image_size)
        return views[0] if len(views) == 1 else whole(shape, image_size)


STRETCHED = Geometry()


def _starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles begin that cover a length: as few as share ``overlap`` pixels, spread evenly."""
    step = max(1, side - overlap)
    gaps = -(-(length - side) // step)
    return [place * (length - side) // max(1, gaps) for place in range(gaps + 1)]


def resized(pixels: NDArray, view: View, padding: NDArray | float) -> NDArray:
    """What a view makes of an image, bilinear as Pillow does it (with antialiasing).

    Args:
        pixels: uint8 (H x W or H x W x 3) or float32 (H x W) of the whole stored image.
        view: which part, and where it goes.
        padding: value of what the target leaves free, one for each channel or one for all.
    """
    return padded(pillow_resized(pixels[view.source.pixels], view.target[2:]), view, padding)


def padded(inner: NDArray, view: View, padding: NDArray | float) -> NDArray:
    """The picture whose target is ``inner``."""
    if view.fills:
        return inner
    picture = np.empty((*view.size, *inner.shape[2:]), inner.dtype)
    picture[...] = padding
    picture[view.target.pixels] = inner
    return picture


def pillow_resized(pixels: NDArray, size: tuple[int, ...]) -> NDArray:
    """Pillow's bilinear resize; uint8 (H x W, or H x W x 3) or float32 (H x W), and the same comes back."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.array(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def put_back(map_hw: NDArray[np.float32], view: View, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A map of a view's picture in the stored image's own geometry: the way back.

    Where the view does not see the image the result has the smallest value of what it sees.

    Args:
        map_hw: of the picture's size.
        view: which part of the image it is of.
        shape: of the stored image.

    Returns:
        float32, H x W.
    """
    inner = pillow_resized(map_hw[view.target.pixels], view.source[2:])
    if view.source == Box(0, 0, *shape[:2]):
        return inner
    map_HW = np.full(shape[:2], inner.min(), dtype=np.float32)
    map_HW[view.source.pixels] = inner
    return map_HW


def largest_in_area(values_HW: NDArray, size: tuple[int, int]) -> NDArray:
    """The largest value that any part of each new pixel's area has; bool or real numbers.

    Args:
        values_HW: bool or real.
        size: height and width of the result.
    """
    for axis, length in enumerate(size):
        values_HW = _largest_along(values_HW, axis, length)
    return values_HW


def _largest_along(values: NDArray, axis: int, length: int) -> NDArray:
    stored = values.shape[axis]
    if stored == length:
        return values
    first = np.arange(length) * stored // length
    behind = -(-(np.arange(length) + 1) * stored // length)
    # reduceat takes pairs of bounds, the second of which must be an index: one row more than there is.
    edge = np.take(values, [stored - 1], axis=axis)
    bounds = np.stack([first, behind], axis=1).ravel()
    return np.maximum.reduceat(np.concatenate([values, edge], axis=axis), bounds, axis=axis).take(
        range(0, 2 * length, 2), axis=axis
    )
