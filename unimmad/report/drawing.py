"""The single pictures of a figure: a model input, a map, a blank, a contour, a map laid over an image.

Letters: C = 3 channels, H x W the image size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from numpy.typing import ArrayLike, NDArray

from unimmad.data.index import ModalityKind
from unimmad.data.prepare import IMAGENET_MEAN, IMAGENET_STD

Image = NDArray[np.floating]
Limits = tuple[float, float]
"""Map values at the two ends of a colour scale."""

MAP_COLOURS = "inferno"
DEPTH_COLOURS = "viridis"
CONTOUR_COLOUR = "#00e5ff"
MAP_CONTOUR_COLOUR = "#ffffff"
NORMAL_COLOUR = "#3b6fb6"
ANOMALOUS_COLOUR = "#d1495b"
BLANK_COLOUR = "#c8c8c8"
FONT_SIZE = 8


def denormalise(image_CHW: ArrayLike, kind: ModalityKind) -> Image:
    """A model input as a picture: H x W x 3, float32, 0 to 1.

    ``rgb`` and ``gray`` undo the ImageNet normalisation; ``depth`` (any unit) is stretched from its smallest
    to its largest value and coloured.
    """
    image = np.asarray(image_CHW, dtype=np.float32)
    if kind == "depth":
        low, high = colour_limits([image[0]])
        coloured_HW4 = colormaps[DEPTH_COLOURS](Normalize(low, high, clip=True)(image[0]))
        return coloured_HW4[..., :3].astype(np.float32)
    mean_C11 = np.array(IMAGENET_MEAN, dtype=np.float32)[:, None, None]
    std_C11 = np.array(IMAGENET_STD, dtype=np.float32)[:, None, None]
    return np.clip(image * std_C11 + mean_C11, 0.0, 1.0).transpose(1, 2, 0)


def colour_limits(maps: Sequence[Image]) -> Limits:
    """The smallest and largest finite value of all maps, apart from each other: a common colour scale."""
    finite = [values[np.isfinite(values)] for values in map(np.asarray, maps)]
    low = min((float(values.min()) for values in finite if values.size), default=0.0)
    high = max((float(values.max()) for values in finite if values.size), default=1.0)
    if high > low:
        return low, high
    return low, low + max(abs(low), 1.0)


def heat_limits(maps: Sequence[Image]) -> Limits:
    """A common colour scale of some anomaly maps of one class: from their median to their largest finite value.

    Half of the pixels get the darkest colour: they are normal nearly always, and their background level and the
    border that the blur darkens would otherwise take up most of the scale.
    """
    values_P = np.concatenate([np.ravel(values) for values in maps])
    finite_P = values_P[np.isfinite(values_P)]
    if finite_P.size:
        values_P = finite_P[finite_P >= np.median(finite_P)]
    return colour_limits([values_P])


def show_image(ax: Axes, image: Image, **style: object) -> None:
    ax.imshow(image, interpolation="nearest", **style)  # type: ignore[arg-type]
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color("0.6")
        spine.set_linewidth(0.5)


def show_map(ax: Axes, map_HW: Image, limits: Limits) -> None:
    ax.set_facecolor(BLANK_COLOUR)  # seen where the map is NaN: not looked at
    show_image(ax, map_HW, cmap=MAP_COLOURS, vmin=limits[0], vmax=limits[1])


def show_blank(ax: Axes, shape: tuple[int, ...], text: str) -> None:
    show_image(ax, np.full(shape, 0.93), cmap="gray", vmin=0, vmax=1)
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", fontsize=FONT_SIZE, color="0.3")


def draw_contour(ax: Axes, mask_HW: NDArray[np.bool_] | None, colour: str = CONTOUR_COLOUR) -> None:
    if mask_HW is None or not mask_HW.any():
        return
    # A border of zeros closes the contour of regions that touch the image's edge.
    bordered = np.pad(mask_HW.astype(np.float32), 1)
    height, width = bordered.shape
    limits = ax.get_xlim(), ax.get_ylim()
    columns, rows = np.arange(-1, width - 1), np.arange(-1, height - 1)
    ax.contour(columns, rows, bordered, [0.5], colors=colour, linewidths=1)
    ax.set(xlim=limits[0], ylim=limits[1])


def not_looked_at(picture_HWC: Image, look_HW: NDArray[np.bool_]) -> Image:
    """A picture of a map, or of one on an image, with what is outside of the region of interest washed out."""
    washed_HWC = 0.35 * picture_HWC.mean(axis=2, keepdims=True) + 0.6
    return np.where(look_HW[..., None], picture_HWC, washed_HWC)


def laid_over(image_HWC: Image, map_HW: Image, limits: Limits) -> Image:
    """The image in grey with the map's colours on it, the stronger the larger the map's value; where that is NaN (not
    looked at) the grey is washed out."""
    low, high = limits
    look_HW = ~np.isnan(map_HW)
    share_HW = np.clip((np.where(look_HW, map_HW, low) - low) / (high - low), 0.0, 1.0)
    grey_HW1 = image_HWC.mean(axis=2, keepdims=True)
    colour_HWC = colormaps[MAP_COLOURS](share_HW)[..., :3]
    opacity_HW1 = 0.85 * share_HW[..., None]
    laid_HWC = (1 - opacity_HW1) * grey_HW1 + opacity_HW1 * colour_HWC
    return laid_HWC if look_HW.all() else not_looked_at(laid_HWC, look_HW)
