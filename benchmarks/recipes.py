"""Recipes whose network is measured."""

from __future__ import annotations

from typing import Any

from unimmad.config import Recipe, load_recipe
from unimmad.methods.registry import METHOD_SETTINGS

RECIPE_HELP = "of UniMMAD; of one with a search beside the reconstruction, the reconstruction alone is measured"
_METHODS = {name: METHOD_SETTINGS[name] for name in ("unimmad", "unimmad_search")}


def measured_recipe(name: str) -> Recipe[Any]:
    """A recipe by name or file.

    Raises:
        ValueError: there is none, or it is of another method.
    """
    return load_recipe(name, methods=_METHODS)
