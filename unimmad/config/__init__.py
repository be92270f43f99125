"""Recipes: every setting of a run, typed, frozen, documented, and checked together at load.

A recipe is a YAML file with the sections ``model``, ``data``, ``training`` and ``evaluation``. Shipped ones (``demo``,
``tiny``, ``paper``, ``real``) are named; any other is given by its path. ``--set KEY=VALUE`` overrides a single value.
"""

from __future__ import annotations

from unimmad.config.data import DataSettings
from unimmad.config.evaluation import MAX_BLUR, Blur, EvaluationSettings, Precision
from unimmad.config.fields import Integer, NotNegative, Positive, Real
from unimmad.config.loading import (
    DEFAULT_RECIPE,
    MAX_PROBLEMS,
    RECIPES_FOLDER,
    SUGGESTED_RECIPE,
    as_it_was_meant,
    check_dataset_weights,
    load_recipe,
    override_recipe,
    parse_recipe,
)
from unimmad.config.method import MethodSettings
from unimmad.config.model import CHANNELS_PER_MODALITY, ModelSettings
from unimmad.config.recipe import Recipe
from unimmad.config.tiles import TileSettings
from unimmad.config.training import TrainingSettings

__all__ = [
    "CHANNELS_PER_MODALITY",
    "DEFAULT_RECIPE",
    "MAX_BLUR",
    "MAX_PROBLEMS",
    "RECIPES_FOLDER",
    "SUGGESTED_RECIPE",
    "Blur",
    "DataSettings",
    "EvaluationSettings",
    "Integer",
    "MethodSettings",
    "ModelSettings",
    "NotNegative",
    "Positive",
    "Precision",
    "Real",
    "Recipe",
    "TileSettings",
    "TrainingSettings",
    "as_it_was_meant",
    "check_dataset_weights",
    "load_recipe",
    "override_recipe",
    "parse_recipe",
]
