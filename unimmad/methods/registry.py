"""All methods by name: what a recipe may call ``method``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from unimmad.config import MethodSettings, ModelSettings, Recipe
from unimmad.config.recipe import DEFAULT_METHOD, MethodTypes
from unimmad.methods.dinomaly import Dinomaly, DinomalySettings
from unimmad.methods.inp_former import INPFormer, INPFormerSettings
from unimmad.methods.level_search_method import LevelSearchMethod, LevelSearchMethodSettings
from unimmad.methods.mambaad import MambaAD, MambaADSettings
from unimmad.methods.memory_bank import MemoryBank, MemoryBankSettings
from unimmad.methods.rd import RD, RDSettings
from unimmad.methods.searching import SearchingSettings, SearchingUniMMAD
from unimmad.methods.uniad import UniAD, UniADSettings
from unimmad.methods.vitad import ViTAD, ViTADSettings
from unimmad.model.method import Fitted, FittedMethod, Method
from unimmad.model.unimmad import UniMMAD


@dataclass(frozen=True)
class MethodType:
    """What is known of a method before it is built."""

    settings: type[MethodSettings]
    """Of the recipe's section ``model``."""
    network: Callable[[Any], Method]
    """A subclass of Method, from those settings, with random weights; a ValueError where they do not fit each other."""
    extends: str | None = None
    """The method that it is with something more: a run may begin with that one's weights."""

    @property
    def is_fitted(self) -> bool:
        """Whether it is fitted, not trained."""
        return isinstance(self.network, type) and issubclass(self.network, FittedMethod)

    @property
    def sees_samples_once_more(self) -> bool:
        """Whether it is trained, and fitted then."""
        return isinstance(self.network, type) and issubclass(self.network, Fitted) and not self.is_fitted


Registry = Mapping[str, MethodType]
"""Methods by the names that recipes call them by. What trains, loads or compares takes one; by default all of ours."""

METHODS: Registry = {
    DEFAULT_METHOD: MethodType(ModelSettings, UniMMAD),
    "unimmad_search": MethodType(SearchingSettings, SearchingUniMMAD, extends=DEFAULT_METHOD),
    "rd": MethodType(RDSettings, RD),
    "uniad": MethodType(UniADSettings, UniAD),
    "vitad": MethodType(ViTADSettings, ViTAD),
    "mambaad": MethodType(MambaADSettings, MambaAD),
    "inp_former": MethodType(INPFormerSettings, INPFormer),
    "dinomaly": MethodType(DinomalySettings, Dinomaly),
    "memory_bank": MethodType(MemoryBankSettings, MemoryBank),
    "level_search": MethodType(LevelSearchMethodSettings, LevelSearchMethod),
}


def settings_of(methods: Registry) -> MethodTypes:
    """What ``load_recipe`` and ``parse_recipe`` take."""
    return {name: kind.settings for name, kind in methods.items()}


METHOD_SETTINGS: MethodTypes = settings_of(METHODS)


def build_method(recipe: Recipe[Any], methods: Registry = METHODS) -> Method:
    """The recipe's network with random weights, to be filled from a checkpoint.

    Args:
        recipe: what it is.
        methods: the recipe's among them.

    Raises:
        ValueError: its settings do not fit each other, such as a backbone that does not exist.
    """
    return methods[recipe.method].network(recipe.model)


def new_model(recipe: Recipe[Any], seed: int | None = None, methods: Registry = METHODS) -> tuple[Method, str]:
    """The network at the start of training, the same for the same seed; and in words what its backbone was loaded with.

    Args:
        recipe: what it is.
        seed: in place of the recipe's.
        methods: the recipe's among them.

    Raises:
        ValueError: as ``build_method``, or the backbone's weights can't be had.
    """
    with torch.random.fork_rng():
        torch.manual_seed(recipe.training.seed if seed is None else seed)
        model = build_method(recipe, methods)
    return model, model.load_backbone()
