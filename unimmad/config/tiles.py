"""Tiles of images that are larger than the model."""

from __future__ import annotations

import re

from pydantic import ValidationError, model_validator

from unimmad.config.fields import NotNegative, Section
from unimmad.serialization.text import shown

SMALLEST = 16
"""Pixels of a tile's side."""


FORM = "SIZE, SIZE:OVERLAP or SIZE:OVERLAP:whole in pixels of the stored image, or none"


class TileSettings(Section):
    """Squares that cover an image, and whether it is looked at as a whole, too."""

    size: NotNegative = 0
    """Side of a tile in pixels of the stored image; each is resized to ``model.image_size``. 0: no tiles."""
    overlap: NotNegative = 32
    """Pixels that neighbouring tiles share, at least; at most half of ``size``."""
    whole: bool = False
    """Whether the whole image, resized, is looked at beside its tiles."""

    @model_validator(mode="after")
    def _check(self) -> TileSettings:
        if 0 < self.size < SMALLEST:
            raise ValueError(f"size {self.size} makes too many tiles: 0 (none), or {SMALLEST} and more")
        if self.size and 2 * self.overlap > self.size:
            raise ValueError(f"overlap {self.overlap} must be at most half of size {self.size}: set both")
        return self

    @classmethod
    def parse(cls, text: str) -> TileSettings:
        """From ``512``, ``512:64``, ``512:64:whole``, or ``none``.

        Raises:
            ValueError: it is of another form, or no tiles can be so.
        """
        if text == "none":
            return cls()
        found = re.fullmatch(r"(\d{1,6})(?::(\d{1,6})(:whole)?)?", text, re.ASCII)
        if found is None or not int(found[1]):
            raise ValueError(f"tiles {shown(text)}: write them as {FORM}")
        size = int(found[1])
        overlap = min(cls().overlap, size // 2) if found[2] is None else int(found[2])
        try:
            return cls(size=size, overlap=overlap, whole=found[3] is not None)
        except ValidationError as error:
            raise ValueError(f"tiles {text}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None

    def same_views(self, other: TileSettings) -> bool:
        """Whether both look at any image by the same views."""
        return self == other or self.size == other.size == 0

    def in_words(self) -> str:
        """For messages."""
        beside = " and the whole image" if self.whole else ""
        return f"tiles of {self.size}, {self.overlap} shared{beside}" if self.size else "whole images"
