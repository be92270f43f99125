"""Which view of an image stands at a position of the training order.

A rule like the order's: a pure function of (seed, epoch, position) and the image's size, whoever reads it. Every tile
is equally likely; where the whole image is a view, too, it has half of the draws.
"""

from __future__ import annotations

from dataclasses import dataclass

from unimmad.data.reading.counter_rng import Purpose, below, counter_rng
from unimmad.data.views import Geometry, View


@dataclass(frozen=True)
class ViewDraw:
    """The view at one position."""

    geometry: Geometry
    seed: int
    """The training order's."""
    epoch: int
    position: int

    def of(self, shape: tuple[int, ...], image_size: int) -> View:
        """Of an image of this height and width."""
        views = self.geometry.views(shape, image_size)
        if len(views) == 1:
            return views[0]
        half, which = counter_rng(self.seed, Purpose.VIEW, self.epoch, self.position, 2)
        if self.geometry.tiles is not None and self.geometry.tiles.whole:
            if not below(half, 2):
                return views[0]
            views = views[1:]
        return views[int(below(which, len(views)))]
