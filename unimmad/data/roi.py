"""Regions of interest: where in a class's images to look, and how much what is found there weighs.

One file a class, beside its images or in a folder of such files:

    CLASS/roi.png     gray: black is not looked at, white counts in full, what lies between counts less
    CLASS/roi.json    polygons with weights, or the rule ``{"foreground": true}``

It is laid over each image as a whole (``data.look``), so images of any size have one. Nothing of it goes into training:
it changes maps, scores, thresholds and metrics, and another can take its place at any time.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from unimmad.data.decode import decode_image
from unimmad.data.decode_limits import read_image_file
from unimmad.serialization.documents import read_limited
from unimmad.serialization.validation import first_problem

STEM = "roi"
SUFFIXES = (".png", ".json")
EXAMPLE = '{"size": [640, 480], "areas": [{"polygon": [[40, 30], [600, 30], [600, 450]]}]}'
NONE = "none"
"""In place of a file or folder: look everywhere."""
MAX_SIDE = 4096
MAX_AREAS, MAX_CORNERS = 1000, 10_000
MAX_PNG_BYTES = 2**20
"""It travels in indexes and checkpoints."""
FULL = 255
"""Level of the weight 1."""
MOST_SKEW = 1.02
"""An image may be this much longer or shorter than the picture of its region, for its width."""

Weight = Annotated[float, Field(ge=0, le=1)]
Point = tuple[float, float]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Area(_Frozen):
    """A polygon and what it weighs."""

    polygon: Annotated[tuple[Point, ...], Field(min_length=3, max_length=MAX_CORNERS)]
    """Corners (x, y) in pixels of ``Roi.size``, from the upper left corner; its edge belongs to it."""
    weight: Weight = 1.0
    """0: not looked at; 1: counts in full."""


class Roi(_Frozen):
    """A region of interest, as roi.json, indexes and checkpoints hold it."""

    size: tuple[int, int] | None = None
    """Width and height of the picture that ``areas`` are drawn on."""
    outside: Weight = 0.0
    """What pixels weigh that lie in no area."""
    areas: Annotated[tuple[Area, ...], Field(max_length=MAX_AREAS)] = ()
    """Where several overlap, the last one counts."""
    png: Annotated[str, Field(max_length=MAX_PNG_BYTES * 4 // 3 + 4)] | None = None
    """A gray PNG, base64, in place of the areas: level / 255 is the weight."""
    foreground: bool = False
    """Look at the object alone, image by image (``data.foreground``); beside areas or a PNG: where both say so."""

    @model_validator(mode="after")
    def _check(self) -> Roi:
        if self.png is not None and (self.areas or self.size):
            raise ValueError("give areas or a png, not both")
        if bool(self.areas) != (self.size is not None):
            raise ValueError("areas need the size, [width, height], of the picture that they are drawn on")
        if self.size is not None and not all(0 < side <= MAX_SIDE for side in self.size):
            raise ValueError(f"size {list(self.size)}: wanted 1 to {MAX_SIDE} pixels a side")
        if not (self.areas or self.png or self.foreground):
            raise ValueError('it says nothing: give areas, or "foreground": true')
        return self

    @property
    def digest(self) -> str:
        """Tells it from others: 12 hexadecimal digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    def levels(self) -> NDArray[np.uint8]:
        """The weights at the size that they are drawn at, 0 to 255; one pixel where the rule alone decides.

        Raises:
            ValueError: the PNG can't be read, or nothing is left to look at.
        """
        return _levels(self)

    @property
    def aspect(self) -> float | None:
        """Width by height; None where the rule alone decides."""
        height, width = self.levels().shape
        return width / height if self.png or self.size else None

    def in_words(self) -> str:
        """For a report's header: what it is made of, what share is looked at, its digest."""
        kind = "PNG" if self.png else "polygons" if self.areas else ""
        share = [f"{kind}, {np.count_nonzero(self.levels()) / self.levels().size:.0%} looked at"] if kind else []
        return f"{', '.join([*share, *(['foreground'] if self.foreground else []), self.digest])}"


@dataclass(frozen=True)
class Rois:
    """The regions of some classes."""

    of_classes: Mapping[str, Roi] = field(default_factory=dict)
    """By ``DATASET/CLASS``."""
    of_all: Roi | None = None
    """Of every other class, and of images whose class is not known."""

    def of(self, class_name: str | None) -> Roi | None:
        """Of ``DATASET/CLASS``; None: look everywhere."""
        return self.of_classes.get(class_name or "", self.of_all)


def read_roi(path: Path) -> Roi:
    """Read a PNG or JSON file.

    Raises:
        ValueError: it can't be read, has another form, or leaves nothing to look at.
    """
    try:
        roi = _read(path)
        roi.levels()
        return roi
    except ValidationError as error:
        raise ValueError(f"{path}: {first_problem(error)}; write it as {EXAMPLE}") from None
    except OSError as error:
        raise ValueError(f"{path}: can't be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _read(path: Path) -> Roi:
    if path.suffix.lower() == ".json":
        return Roi.model_validate_json(read_limited(path, MAX_PNG_BYTES * 2))
    if path.suffix.lower() != ".png":
        raise ValueError("a region of interest is a .png or a .json file")
    data = read_image_file(path)
    if len(data) > MAX_PNG_BYTES:
        raise ValueError(f"it has {len(data)} bytes; save it smaller, {MAX_PNG_BYTES} at most")
    return Roi(png=base64.b64encode(data).decode())


def rois_beside(root: Path, classes: Iterable[str]) -> dict[str, Roi]:
    """Of the files ``ROOT/CLASS/roi.png`` or ``.json`` that are there, by the class's name.

    Raises:
        ValueError: as ``read_roi``, or both of one class.
    """
    folders = {folder.name for folder in root.iterdir() if folder.is_dir()}
    found = {name: _only_one([root / name / STEM]) for name in classes if name in folders}
    return {name: read_roi(path) for name, path in found.items() if path is not None}


def given_rois(path: Path, classes: Iterable[str]) -> Rois:
    """What a user names in place of the regions that go with the data.

    Args:
        path: a file, for every class; a folder with DATASET/CLASS/roi.png, CLASS/roi.png, DATASET/CLASS.png or
            CLASS.png (or .json) of some classes, the others being looked at as a whole; or ``none``.
        classes: ``DATASET/CLASS`` that there are.

    Raises:
        ValueError: as ``read_roi``, or a folder without a file of any class.
    """
    if str(path) == NONE:
        return Rois()
    if not path.is_dir():
        return Rois(of_all=read_roi(path))
    files = {name: _only_one(_places(path, name)) for name in classes}
    found = {name: read_roi(file) for name, file in files.items() if file is not None}
    if not found:
        raise ValueError(
            f"{path} has no region of interest of any class; wanted CLASS/{STEM}.png, CLASS/{STEM}.json, CLASS.png or "
            f"CLASS.json with CLASS one of {', '.join(name.partition('/')[2] for name in files)}"
        )
    return Rois(found)


@lru_cache(maxsize=8)
def _levels(roi: Roi) -> NDArray[np.uint8]:
    levels = _png_levels(base64.b64decode(roi.png)) if roi.png is not None else _drawn(roi)
    if not levels.any():
        raise ValueError("the region of interest leaves nothing to look at")
    return levels


def _drawn(roi: Roi) -> NDArray[np.uint8]:
    if roi.size is None:
        return np.full((1, 1), FULL, dtype=np.uint8)
    canvas = Image.new("L", roi.size, _level(roi.outside))
    draw = ImageDraw.Draw(canvas)
    for area in roi.areas:
        draw.polygon(area.polygon, fill=_level(area.weight))
    return np.asarray(canvas)


def _png_levels(data: bytes) -> NDArray[np.uint8]:
    levels = decode_image(data, ".png", "the region of interest")
    if levels.ndim == 3:
        if (levels != levels[:, :, :1]).any():
            raise ValueError("the region of interest has colours; it is gray (black: not looked at)")
        levels = levels[:, :, 0]
    if levels.dtype != np.uint8:
        raise ValueError(f"the region of interest is {levels.dtype}; save it with 8 bits")
    if max(levels.shape) > MAX_SIDE:
        raise ValueError(
            f"the region of interest has {levels.shape[1]} x {levels.shape[0]} pixels; {MAX_SIDE} a side at most"
        )
    if levels.max() == 1:
        raise ValueError("the region of interest has levels 0 and 1, next to nothing of 255; save it with 0 and 255")
    return levels


def _level(weight: float) -> int:
    """A weight above 0 is never rounded to it."""
    return max(round(weight * FULL), int(weight > 0))


def _places(folder: Path, class_name: str) -> list[Path]:
    """Where a class's file may lie, without suffix."""
    short = class_name.partition("/")[2]
    return [folder / class_name / STEM, folder / short / STEM, folder / class_name, folder / short]


def _only_one(stems: Iterable[Path]) -> Path | None:
    for stem in stems:
        files = [file for suffix in SUFFIXES if (file := stem.with_name(stem.name + suffix)).is_file()]
        if len(files) > 1:
            raise ValueError(f"{files[0]} and {files[1].name} both say where to look; keep one of them")
        if files:
            return files[0]
    return None
