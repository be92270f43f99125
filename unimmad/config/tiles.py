"""Tiles of images that are larger than the model."""

from __future__ import annotations

from pydantic import model_validator

from unimmad.config.fields import NotNegative, Section

SMALLEST = 16
"""Pixels of a tile's side."""


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
