"""What is compared: a method with a seed is a cell, with a recipe and a folder of its own.

Every method has its own recipe, with the optimizer, the schedule and the scoring of its authors. What makes a
comparison fair comes from one base recipe: image size, slots, data, length and batch of the training, and the backbone
where the method can take it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimmad.config import RECIPES_FOLDER, Recipe, load_recipe, override_recipe, parse_overridden, parse_recipe
from unimmad.methods.registry import METHOD_SETTINGS, METHODS

SHARED: Mapping[str, tuple[str, ...]] = {
    "model": ("image_size", "modality_slots"),
    "training": (
        *("global_batch", "accumulation", "epochs", "steps", "precision", "tf32", "log_every", "evaluate_every"),
        *("checkpoint_every", "keep_checkpoints"),
    ),
    "evaluation": ("batch_size", "pictures_per_class"),
}
"""Keys of the base recipe that hold for every method; its section ``data`` does as a whole."""
BACKBONE = ("backbone", "backbone_weights")
"""Those that hold for every method whose backbone is of the same kind."""


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
    methods: Sequence[str], seeds: Sequence[int], base: Recipe[Any], overrides: Sequence[Override], output: Path
) -> list[Cell]:
    """A cell for each method and seed, the seeds of a method one after the other.

    Args:
        methods: names of methods, of shipped recipes, or recipe files.
        seeds: of each method.
        base: what is shared.
        overrides: in their order; those of one method after those of all.
        output: the comparison's folder.

    Raises:
        ValueError: no such method, two of one name, an override of a method that is not compared, a wrong setting.
    """
    names = [_label(method) for method in methods]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--methods: {twice[0]} is there twice")
    if {base.method, base.name} <= set(names) and base.method != base.name:
        raise ValueError(f"--methods: {base.method} and {base.name} are both recipe {base.name}; name one of them")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"--seeds: {max(seeds, key=list(seeds).count)} is there twice")
    if unknown := [override.method for override in overrides if override.method not in (None, *names)]:
        raise ValueError(f"--set {unknown[0]}:...: compared are {', '.join(names)}")
    cells = []
    for method, name in zip(methods, names, strict=True):
        of_all = [override.setting for override in overrides if override.method is None]
        of_method = [override.setting for override in overrides if override.method == name]
        recipe = method_recipe(method, base, [*of_all, *of_method])
        for seed in seeds:
            seeded = override_recipe(recipe, [f"training.seed={seed}"], METHOD_SETTINGS)
            cells.append(Cell(name, seed, seeded, output / name / f"seed_{seed}"))
    return cells


def method_recipe(method: str, base: Recipe[Any], overrides: Sequence[str] = ()) -> Recipe[Any]:
    """The recipe of ``method`` with what it shares with ``base``; ``base`` itself where it is of that method.

    Args:
        method: a name, of a method or of a recipe, or a recipe file.
        base: what is shared.
        overrides: ``KEY=VALUE``, which may mend what does not fit.

    Raises:
        ValueError: no such method or recipe, or they do not fit each other.
    """
    if method in (base.method, base.name):
        return override_recipe(base, overrides, METHOD_SETTINGS)
    own = _own_recipe(method)
    values, shared = own.model_dump(mode="json"), base.model_dump(mode="json")
    for section, keys in SHARED.items():
        values[section] |= {key: shared[section][key] for key in keys}
    values["data"] = shared["data"]
    if own.model.backbone_kind == base.model.backbone_kind:
        values["model"] |= {key: shared["model"][key] for key in BACKBONE}
    return parse_overridden(values, f"{method}, with what recipe {base.name} says for all", overrides, METHOD_SETTINGS)


def _own_recipe(method: str) -> Recipe[Any]:
    """The shipped one of that name or the file; a method without one has its settings' defaults."""
    shipped = (RECIPES_FOLDER / f"{method}.yaml").is_file()
    if method in METHODS and not shipped:
        return parse_recipe({"name": method, "method": method}, method, METHOD_SETTINGS)
    return load_recipe(method, methods=METHOD_SETTINGS)


def _label(method: str) -> str:
    """A recipe file goes by its name."""
    return Path(method).stem if method.endswith((".yaml", ".yml")) else method
