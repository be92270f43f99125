"""By which views a recipe's images are looked at, in scoring and in training."""

from __future__ import annotations

from unimmad.config import Recipe, TileSettings
from unimmad.data.views import Geometry, Tiles


def scoring_geometry(recipe: Recipe) -> Geometry:
    """As images are scored."""
    return Geometry(recipe.data.aspect, tiles_of(recipe.evaluation.tiles))


def training_geometry(recipe: Recipe) -> Geometry:
    """As training, or fitting, sees images."""
    return Geometry(recipe.data.aspect, tiles_of(recipe.training.tiles))


def tiles_of(settings: TileSettings) -> Tiles | None:
    """None where there are none."""
    return Tiles(settings.size, settings.overlap, settings.whole) if settings.size else None
