"""What is compared: a method with a seed is a cell, with a recipe and a folder of its own.

Every method has its own recipe, with the optimizer, the schedule and the scoring of its authors. What makes a
comparison fair comes from one base recipe: image size, slots, data, length and batch of the training, and the backbone
where the method can take it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from unimmad.config import RECIPES_FOLDER, Recipe, load_recipe, override_recipe, parse_recipe
from unimmad.config.recipe import DEFAULT_METHOD
from unimmad.methods.registry import METHODS, Registry, settings_of
from unimmad.serialization.text import shown

SHARED: Mapping[str, tuple[str, ...]] = {
    "model": ("image_size", "modality_slots"),
    "training": (
        *("global_batch", "accumulation", "epochs", "steps", "precision", "tf32", "log_every", "evaluate_every"),
        *("checkpoint_every", "keep_checkpoints", "tiles"),
    ),
    "evaluation": ("batch_size", "pictures_per_class", "mask_resize", "resolution", "tiles"),
}
"""Keys of the base recipe that hold for every method; its section ``data`` does as a whole."""
BACKBONE = ("backbone", "backbone_weights")
"""Those that hold for every method whose backbone is of the same kind."""
RECIPE_OF: Mapping[str, str] = {DEFAULT_METHOD: "paper", "unimmad_search": "best"}
"""Of methods whose shipped recipe has another name."""
SEED = "training.seed"
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _.+=-]{0,99}", re.ASCII)
"""A folder's name, and, but for ``=``, what ``--set LABEL:KEY=VALUE`` can name."""


@dataclass(frozen=True)
class Cell:
    """One method trained with one seed."""

    method: str
    """What the table calls it."""
    seed: int
    recipe: Recipe[Any]
    folder: Path
    """::

    recipe.yaml     what is trained
    probe/          a few steps, where minutes are asked for
    run/            the trainer's run folder
    evaluation/     report, tables, pictures
    cost.json
    result.json     metrics and cost; the cell is done
    failure.txt     why it is not
    """

    @property
    def name(self) -> str:
        return f"{self.method}, seed {self.seed}"


@dataclass(frozen=True)
class Override:
    """One ``--set``."""

    method: str | None
    """None: of all methods."""
    setting: str
    """``KEY=VALUE``."""

    @classmethod
    def parse(cls, text: str) -> Override:
        """``KEY=VALUE``, or ``METHOD:KEY=VALUE``."""
        key, equals, value = text.partition("=")
        method, colon, own_key = key.partition(":")
        return cls(method, f"{own_key}{equals}{value}") if colon else cls(None, text)


def make_cells(
    methods: Sequence[str],
    seeds: Sequence[int],
    base: Recipe[Any],
    overrides: Sequence[Override],
    output: Path,
    registry: Registry = METHODS,
) -> list[Cell]:
    """A cell for each method and seed, the seeds of a method one after the other.

    Args:
        methods: names of methods, of shipped recipes, or recipe files; ``LABEL=METHOD`` gives one another label, so
            that variants of one recipe stand beside each other.
        seeds: of each method.
        base: what is shared.
        overrides: in their order; those of one method, by its label, after those of all.
        output: the comparison's folder.
        registry: methods that a recipe may be of.

    Raises:
        ValueError: no such method, two of one name, an override of a method that is not compared, a wrong setting.
    """
    labelled = [_labelled(method) for method in methods]
    names = [name for name, _ in labelled]
    _check(names, seeds, overrides)
    recipes: dict[str, Recipe[Any]] = {}
    for name, method in labelled:
        of_all = [override.setting for override in overrides if override.method is None]
        of_method = [override.setting for override in overrides if override.method == name]
        try:
            recipe = method_recipe(method, base, [*of_all, *of_method], registry)
        except ValueError as error:
            one = f"; a setting of some methods alone is --set METHOD:KEY=VALUE, such as {name}:..." if of_all else ""
            raise ValueError(f"{name}, with what recipe {base.name} says for all: {error}{one}") from None
        if same := [other for other, of_other in recipes.items() if of_other == recipe]:
            raise ValueError(
                f"--methods: {same[0]} and {name} are the same recipe, {recipe.name}; name one of them, or tell them "
                f"apart by --set {name}:KEY=VALUE"
            )
        recipes[name] = recipe
    return [
        Cell(name, seed, _seeded(recipe, seed, registry), output / name / f"seed_{seed}")
        for name, recipe in recipes.items()
        for seed in seeds
    ]


def _check(names: Sequence[str], seeds: Sequence[int], overrides: Sequence[Override]) -> None:
    """
    Raises:
        ValueError: there is nothing to compare, something twice, or an override that is for none of it.
    """
    if not names or not seeds:
        raise ValueError(f"{'--seeds' if names else '--methods'} names none")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"--methods: two are called {twice[0]}; the table would mix them: give one another, LABEL=METHOD"
        )
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds: {max(seeds, key=list(seeds).count)} is there twice")
    for override in overrides:
        if override.method not in (None, *names):
            raise ValueError(f"--set {override.method}:{override.setting}: compared are {', '.join(names)}")
        if override.setting.partition("=")[0].strip() == SEED:
            raise ValueError(f"--set {override.setting}: {SEED} follows --seeds")


def _seeded(recipe: Recipe[Any], seed: int, registry: Registry) -> Recipe[Any]:
    return override_recipe(recipe, [f"{SEED}={seed}"], settings_of(registry))


def method_recipe(
    method: str, base: Recipe[Any], overrides: Sequence[str] = (), registry: Registry = METHODS
) -> Recipe[Any]:
    """The recipe of ``method`` with what it shares with ``base``; ``base`` itself where it is of that method or name.
    Where it is of one that extends it, ``base`` without what is more in it.

    Args:
        method: a method, or a recipe's name or file.
        base: what is shared.
        overrides: of either, ``KEY=VALUE``.
        registry: methods that a recipe may be of.

    Raises:
        ValueError: no such method or recipe, or they do not fit each other.
    """
    if method == base.method or (method == base.name and method not in registry):
        return override_recipe(base, overrides, settings_of(registry))
    if registry[base.method].extends == method:
        return override_recipe(_without_extension(base, method, registry), overrides, settings_of(registry))
    own = load_recipe(_recipe_of(method, registry), methods=settings_of(registry))
    values = base.model_dump(mode="json")
    shared = {section: {key: values[section][key] for key in keys} for section, keys in SHARED.items()}
    if own.model.backbone_kind == base.model.backbone_kind:
        shared["model"] |= {key: values["model"][key] for key in BACKBONE}
    return override_recipe(own, overrides, settings_of(registry), {**shared, "data": values["data"]})


def _without_extension(recipe: Recipe[Any], method: str, registry: Registry) -> Recipe[Any]:
    """As ``method`` has it, which the recipe's extends."""
    values = recipe.model_dump(mode="json")
    model = {key: value for key, value in values["model"].items() if key in registry[method].settings.model_fields}
    return parse_recipe({**values, "method": method, "model": model}, f"recipe {recipe.name}", settings_of(registry))


def _recipe_of(method: str, registry: Registry) -> str:
    """What to load.

    Raises:
        ValueError: there is no such method; names the nearest.
    """
    name = RECIPE_OF.get(method, method)
    shipped = {path.stem for path in RECIPES_FOLDER.glob("*.yaml")}
    if name in shipped or Path(name).is_file():
        return name
    known = sorted({*registry, *shipped})
    near = get_close_matches(method, known, n=1)
    raise ValueError(
        f"{shown(method)} is neither a method ({', '.join(registry)}), nor a recipe's name or file"
        + (f"; did you mean {near[0]}?" if near else "")
    )


def _labelled(method: str) -> tuple[str, str]:
    """Label and method of ``METHOD`` or ``LABEL=METHOD``; a recipe file without a label goes by its name.

    Raises:
        ValueError: no folder should be called so.
    """
    label, equals, labelled = (part.strip() for part in method.partition("="))
    if not equals or Path(method).is_file():
        label, labelled = method, method
        if Path(method).is_file() or method.endswith((".yaml", ".yml")):
            label = Path(method).stem
    if not _LABEL.fullmatch(label):
        raise ValueError(f"--methods: {shown(label)} can't name a folder; use letters, digits and _ . + - in a name")
    return label, labelled
