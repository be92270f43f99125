"""The heat map of one sample as PNG: each modality, the map, and the map laid over the first modality."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import colormaps, get_data_path
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from unimmad.data.index import ModalityKind
from unimmad.data.prepare import as_channels, seen_pixels
from unimmad.data.views import largest_in_area, whole
from unimmad.report.drawing import DEPTH_COLOURS, MAP_COLOURS, Limits, colour_limits, laid_over, not_looked_at
from unimmad.serialization.atomic_write import write_aside

Picture = NDArray[np.float32]
"""H x W x 3, 0 to 1."""

LONGEST_SIDE = 512
SHORTEST_SIDE = 192
GAP = 4
"""Pixels of white between two panels."""
BAR_WIDTH = 14
BAR_NUMBERS = 5
LETTER_SIZE = 12
LINE = 17
"""Pixels of a line of text."""


def panel_size(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a panel: the image's own shape, enlarged or made smaller to a size that can be looked at."""
    height, width = shape[:2]
    scale = min(LONGEST_SIDE / max(height, width), max(1.0, SHORTEST_SIDE / min(height, width)))
    return max(1, round(height * scale)), max(1, round(width * scale))


def picture_of(pixels: np.ndarray, kind: ModalityKind, size: tuple[int, int]) -> Picture:
    """What ``stored_pixels`` made of an image, as people see it; depth is stretched from its smallest to its largest
    value and coloured."""
    image_CHW = as_channels(seen_pixels(pixels, kind, whole(pixels.shape, size))).numpy()
    if kind == "depth":
        low, high = colour_limits([image_CHW[0]])
        coloured_HW4 = colormaps[DEPTH_COLOURS](np.clip((image_CHW[0] - low) / (high - low), 0, 1))
        return _resized(coloured_HW4[..., :3].astype(np.float32), size)
    return _resized(image_CHW.transpose(1, 2, 0), size)


def save_heat_map(
    pictures: tuple[tuple[str, Picture], ...],
    map_HW: NDArray[np.float32],
    limits: Limits,
    path: Path,
    weights_HW: NDArray[np.float32] | None = None,
    title: Sequence[str] = (),
    parts: Sequence[tuple[str, NDArray[np.float32]]] = (),
) -> None:
    """Write what ``heat_map`` makes as PNG.

    Raises:
        ValueError: the folder cannot be made or written to.
    """
    picture = heat_map(pictures, map_HW, limits, weights_HW, title, parts)
    write_aside(path, lambda temporary: picture.save(temporary, format="PNG"))


def heat_map(
    pictures: tuple[tuple[str, Picture], ...],
    map_HW: NDArray[np.float32],
    limits: Limits,
    weights_HW: NDArray[np.float32] | None = None,
    title: Sequence[str] = (),
    parts: Sequence[tuple[str, NDArray[np.float32]]] = (),
) -> PillowImage.Image:
    """The panels side by side, each under its name, and the colour bar beside them.

    Where a map goes beyond the colours, a line in the map on the first modality is around its highest part, and the
    line's value stands above.

    Args:
        pictures: of the modalities, all of one size.
        map_HW: the anomaly map of the same aspect; brought to the pictures' size.
        limits: map values at the two ends of the colour scale.
        weights_HW: of a region of interest, at the map's size; what is not looked at is gray in both maps.
        title: lines above all.
        parts: further maps to stand behind, such as what each modality adds, each under its name.
    """
    panels = [picture for _, picture in pictures]
    size = panels[0].shape[:2]
    large_HW, looked_HW = _at_size(map_HW, weights_HW, size)
    maps = [large_HW, *(_at_size(part_HW, weights_HW, size)[0] for _, part_HW in parts)]
    coloured: list[NDArray[np.floating]] = [_coloured(one_HW, limits) for one_HW in maps]
    level = _line_level(large_HW, limits)
    overlay_HWC = laid_over(panels[0], large_HW, limits)
    coloured.insert(1, overlay_HWC if level is None else _outlined(overlay_HWC, large_HW >= level))
    drawn = coloured if looked_HW is None else [not_looked_at(panel, looked_HW) for panel in coloured]
    height, width = size
    gap = np.ones((height, GAP, 3))
    row = np.concatenate([part for panel in (*panels, *drawn) for part in (panel, gap)], axis=1)
    first = pictures[0][0]
    line = "" if level is None else f", line: {level:.3g}"
    heads = [name for name, _ in pictures] + ["map", f"map on {first}{line}", *(name for name, _ in parts)]
    return labelled(_to_bytes(row), heads, width + GAP, limits, title)


def _at_size(
    map_HW: NDArray[np.float32], weights_HW: NDArray[np.float32] | None, size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
    """A map at the panels' height and width, and where it was looked there; None: everywhere."""
    height, width = size
    look_HW = None if weights_HW is None else weights_HW > 0
    if min(map_HW.shape) > min(height, width):  # a mean over its area would hide what is small
        map_HW = largest_in_area(map_HW, (height, width))
        look_HW = None if look_HW is None else largest_in_area(look_HW, (height, width))
    large_HW = _stretched(map_HW, (width, height))
    if look_HW is None:
        return large_HW, None
    # What is not looked at is 0 in the map, and would darken the edge.
    near_HW = _stretched(look_HW.astype(np.float32), (width, height))
    looked_HW = near_HW >= 0.5
    return np.divide(large_HW, near_HW, out=np.zeros_like(large_HW), where=looked_HW), looked_HW


def _line_level(map_HW: NDArray[np.float32], limits: Limits) -> float | None:
    """Half the way from the end of the colours, beyond which they tell nothing apart, to the highest value; None where
    colours reach that."""
    highest = float(map_HW.max())
    return (limits[1] + highest) / 2 if highest > limits[1] else None


def _outlined(panel_HWC: NDArray[np.floating], inside_HW: NDArray[np.bool_]) -> NDArray[np.floating]:
    """A black line, a pixel wide, along the inner edge of a region; none along the picture's own edge."""
    padded = np.pad(inside_HW, 1, mode="edge")
    within_HW = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.where((inside_HW & ~within_HW)[..., None], 0.0, panel_HWC)


def _coloured(map_HW: NDArray[np.float32], limits: Limits) -> NDArray[np.floating]:
    share_HW = np.clip((map_HW - limits[0]) / (limits[1] - limits[0]), 0, 1)
    return colormaps[MAP_COLOURS](share_HW)[..., :3]


def _stretched(map_HW: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """To a width and height."""
    return np.asarray(PillowImage.fromarray(map_HW).resize(size, PillowImage.Resampling.BILINEAR))


def labelled(
    row_HWC: NDArray[np.uint8], heads: Sequence[str], pitch: int, limits: Limits, title: Sequence[str]
) -> PillowImage.Image:
    """A row of panels with a title, the panels' names and a colour bar.

    Args:
        row_HWC: the panels, with white between and behind them.
        heads: a name for each.
        pitch: pixels from one panel's left edge to the next one's.
        limits: map values at the two ends of the bar.
        title: lines above all.
    """
    font = _font()
    top = LINE * (len(title) + 1)
    height, width = row_HWC.shape[:2]
    numbers = [f"{value:.3g}" for value in np.linspace(limits[1], limits[0], BAR_NUMBERS)]
    beside = BAR_WIDTH + 3 * GAP + max(round(font.getlength(number)) for number in numbers)
    picture = PillowImage.new("RGB", (width + beside, top + max(height, BAR_NUMBERS * LINE)), "white")
    picture.paste(PillowImage.fromarray(row_HWC), (0, top))
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(title):
        draw.text((2, LINE * number), _fitted(line, font, picture.width - 4), fill="black", font=font)
    for number, head in enumerate(heads):
        draw.text((number * pitch + 2, top - LINE), _fitted(head, font, pitch - 4), fill="black", font=font)
    long = picture.height - top
    bar = colormaps[MAP_COLOURS](np.linspace(1, 0, long))[:, None, :3].repeat(BAR_WIDTH, axis=1)
    picture.paste(PillowImage.fromarray(_to_bytes(bar)), (width + GAP, top))
    for place, text in zip(np.linspace(0, long - LINE, BAR_NUMBERS), numbers, strict=True):
        draw.text((width + BAR_WIDTH + 2 * GAP, top + round(place)), text, fill="black", font=font)
    return picture


@cache
def _font() -> ImageFont.FreeTypeFont:
    """The one that matplotlib brings: Latin, Greek and Cyrillic letters."""
    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), LETTER_SIZE)


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cut at its start where it is too wide: a name's end tells most."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"...{text}") > width:
        text = text[max(1, len(text) // 16) :]
    return f"...{text}"


def _to_bytes(picture_HWC: np.ndarray) -> NDArray[np.uint8]:
    return (np.clip(picture_HWC, 0, 1) * 255).round().astype(np.uint8)


def _resized(picture_HWC: Picture, size: tuple[int, int]) -> Picture:
    image = PillowImage.fromarray(_to_bytes(picture_HWC))
    resized = image.resize((size[1], size[0]), PillowImage.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32) / np.float32(255)
