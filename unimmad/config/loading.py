"""Recipes from YAML files, by name or path, with overrides; checked together at load."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from unimmad.config.recipe import DEFAULT_METHOD, UNIMMAD_ALONE, MethodTypes, Recipe
from unimmad.serialization.documents import MAX_YAML_BYTES, parse_yaml, read_limited
from unimmad.serialization.text import one_line, short, shown

RECIPES_FOLDER = Path(__file__).parent / "recipes"

DEFAULT_RECIPE = "demo"
"""What commands take where none is named."""
SUGGESTED_RECIPE = "drawn_search"
"""What they suggest for data of one's own: on docs/comparison.md it finds most, in minutes on any machine."""

MAX_PROBLEMS = 10
"""Of a recipe, said at once."""


def load_recipe(name_or_file: str, overrides: Sequence[str] = (), methods: MethodTypes = UNIMMAD_ALONE) -> Recipe[Any]:
    """Read a shipped recipe by name or any by path, then apply ``KEY=VALUE`` overrides (``model.embed_dim=64``).

    Args:
        name_or_file: such as ``paper``, or ``my/recipe.yaml``.
        overrides: applied in their order.
        methods: those that a recipe may name (``unimmad.methods.registry`` has all).

    Raises:
        ValueError: no such recipe, an unknown key, a bad value; names file or option, key, and the nearest known key.
    """
    path = _recipe_path(name_or_file)
    values = _read(path)
    values.setdefault("name", path.stem)
    return override_recipe(parse_recipe(values, str(path), methods), overrides, methods)


def override_recipe(
    recipe: Recipe[Any],
    overrides: Sequence[str],
    methods: MethodTypes = UNIMMAD_ALONE,
    shared: Mapping[str, Mapping[str, Any]] | None = None,
) -> Recipe[Any]:
    """The same but for ``KEY=VALUE`` overrides, applied in their order, and checked when all are.

    Args:
        recipe: what is changed.
        overrides: the last of a key counts.
        methods: the recipe's among them.
        shared: before them, by section, values of other keys, as another recipe has them.

    Raises:
        ValueError: as ``load_recipe``.
    """
    if not overrides and not shared:
        return recipe
    changed = recipe.model_dump(mode="json")
    for section, values in (shared or {}).items():
        changed[section] |= values
    for override in overrides:
        _apply_override(changed, override, type(recipe))
    origin = "".join(f"--set {override} " for override in overrides).rstrip() or f"recipe {recipe.name}, changed"
    return parse_recipe(changed, origin, methods)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(read_limited(path, MAX_YAML_BYTES), f"recipe {path}")
    except OSError as error:
        raise ValueError(f"recipe {path} can't be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise ValueError(f"recipe {path} must be a mapping of sections such as model: and training:")
    return values


def as_it_was_meant(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """A checkpoint's recipe, with the rules from before there were settings for them where the defaults are others."""
    evaluation = values.get("evaluation")
    if not isinstance(evaluation, Mapping) or "mask_resize" in evaluation:
        return values
    return {**values, "evaluation": {**evaluation, "mask_resize": "nearest"}}


def check_dataset_weights(weights: Mapping[str, float], datasets: Collection[str]) -> None:
    """Check that each weight is of a dataset at hand, or of one that a shipped recipe (``paper``) weighs.

    Raises:
        ValueError: one is of neither; names those at hand, and the nearest.
    """
    shipped = [_read(file).get("data", {}).get("dataset_weights", {}) for file in RECIPES_FOLDER.glob("*.yaml")]
    known = {*datasets, *(name for of_recipe in shipped for name in of_recipe)}
    if unknown := [name for name in weights if name not in known]:
        raise ValueError(
            f"data.dataset_weights: no dataset is called {unknown[0]}; there are {', '.join(datasets)}"
            f"{_nearest(unknown[0], list(datasets))}"
        )


def parse_recipe(values: Mapping[str, Any], origin: str, methods: MethodTypes = UNIMMAD_ALONE) -> Recipe[Any]:
    """Check a mapping against the settings of its method; ``origin`` names it in errors.

    Raises:
        ValueError: as ``load_recipe``.
    """
    recipe_type = _recipe_type(values, origin, methods)
    try:
        return recipe_type.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        messages = [_explain(dict(problem), recipe_type) for problem in problems[:MAX_PROBLEMS]]
        more = [f"and {len(problems) - MAX_PROBLEMS} more"] if len(problems) > MAX_PROBLEMS else []
        raise ValueError(f"{origin}: {one_line('; '.join(messages + more), 2000)}") from None


def _recipe_type(values: object, origin: str, methods: MethodTypes) -> type[Recipe[Any]]:
    method = values.get("method", DEFAULT_METHOD) if isinstance(values, Mapping) else DEFAULT_METHOD
    if not isinstance(method, str) or method not in methods:
        nearest = _nearest(method, list(methods)) if isinstance(method, str) else ""
        raise ValueError(f"{origin}: method {shown(method)} is not one of {', '.join(methods)}{nearest}")
    return Recipe[methods[method]]  # type: ignore[valid-type]


def _recipe_path(name_or_file: str) -> Path:
    shipped = RECIPES_FOLDER / f"{name_or_file}.yaml"
    if shipped.is_file():
        return shipped
    path = Path(name_or_file)
    if path.is_file():
        return path
    names = sorted(file.stem for file in RECIPES_FOLDER.glob("*.yaml"))
    raise ValueError(
        f"no recipe {name_or_file!r}: neither a file nor one of {', '.join(names)}{_nearest(name_or_file, names)}"
    )


def _apply_override(values: dict[str, Any], override: str, recipe_type: type[Recipe[Any]]) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ValueError(f"--set {override}: write it as KEY=VALUE, for example model.embed_dim=64")
    key = key.strip()
    if key == "method":
        raise ValueError(f"--set {override}: a method has a recipe of its own; name one by --recipe, such as {text}")
    if key in _sections(recipe_type):
        raise ValueError(f"--set {override}: {key} is a section; set one of its keys by --set {key}.KEY=VALUE")
    *sections, last = key.split(".")
    place: Any = values
    for section in sections:
        place = place.get(section) if isinstance(place, dict) else None
    known = _known_keys(recipe_type)
    free_form = key.startswith("data.dataset_weights.")
    if not isinstance(place, dict) or (key not in known and not free_form):
        raise ValueError(f"--set {override}: unknown key {key}{_nearest(key, known)}")
    try:
        place[last] = parse_yaml(text, "it")
    except ValueError:
        raise ValueError(f"--set {override}: {shown(text)} is not a YAML value") from None
    if isinstance(place[last], str) and (number := _as_float(place[last])) is not None:
        place[last] = number


def _as_float(text: str) -> float | None:
    """YAML reads 1e-3 as a string; people mean a number."""
    try:
        return float(text)
    except ValueError:
        return None


def _known_keys(recipe_type: type[Recipe[Any]]) -> list[str]:
    sections = _sections(recipe_type)
    return [
        *(name for name in recipe_type.model_fields if name not in sections),
        *(f"{name}.{key}" for name, section in sections.items() for key in _keys_in(section)),
    ]


def _keys_in(section: type[BaseModel]) -> list[str]:
    """Its own, and behind each that is a section itself those in it."""
    inner = _sections(section)
    return [*section.model_fields, *(f"{name}.{key}" for name, found in inner.items() for key in _keys_in(found))]


def _sections(recipe_type: type[BaseModel]) -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in recipe_type.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def _explain(problem: dict[str, Any], recipe_type: type[Recipe[Any]]) -> str:
    key = ".".join(short(str(part)) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}{_nearest(key, _known_keys(recipe_type) + list(recipe_type.model_fields))}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    instead = "" if isinstance(problem["input"], (dict, BaseModel)) else f", not {shown(problem['input'])}"
    return f"{key}: {message}{instead}" if key else f"{message}{instead}"


def _nearest(key: str, known: Sequence[str]) -> str:
    by_last_part = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not close:
        close = [by_last_part[name] for name in difflib.get_close_matches(key.rpartition(".")[2], by_last_part, n=1)]
    return f"; did you mean {close[0]}?" if close else ""


def flat_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a dumped recipe by their names, such as ``training.tiles.size``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
