"""By which views a recipe's images are looked at, in scoring and in training."""

from __future__ import annotations

from typing import Any

from unimmad.config import EvaluationSettings, Recipe, TileSettings
from unimmad.data.views import Aspect, Geometry, Tiles


def scoring_geometry(recipe: Recipe) -> Geometry:
    """As images are scored."""
    return Geometry(recipe.data.aspect, tiles_of(recipe.evaluation.tiles))


def training_geometry(recipe: Recipe) -> Geometry:
    """As training, or fitting, sees images."""
    return Geometry(recipe.data.aspect, tiles_of(recipe.training.tiles))


def with_tiles(recipe: Recipe[Any], tiles: TileSettings | None) -> Recipe[Any]:
    """The recipe with other tiles to score by; None: with its own.

    Raises:
        ValueError: as ``settings_with_tiles``.
    """
    settings = settings_with_tiles(recipe.evaluation, recipe.data.aspect, tiles)
    return recipe.model_copy(update={"evaluation": settings})


def settings_with_tiles(settings: EvaluationSettings, aspect: Aspect, tiles: TileSettings | None) -> EvaluationSettings:
    """The settings with other tiles; None: as they are.

    Raises:
        ValueError: images are cropped.
    """
    if tiles is None:
        return settings
    if tiles.size and aspect == "crop":
        raise ValueError("tiles look at all of an image, and this model at its middle alone (data.aspect crop)")
    return settings.model_copy(update={"tiles": tiles})


def tiles_of(settings: TileSettings) -> Tiles | None:
    """None where there are none."""
    return Tiles(settings.size, settings.overlap, settings.whole) if settings.size else None
