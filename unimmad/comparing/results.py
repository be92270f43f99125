"""result.json of a cell, and what several seeds of a method come to.

Results stand for themselves: a table may be made of results of other days and machines.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from unimmad.config import Recipe
from unimmad.config.loading import flat_settings
from unimmad.metrics.metrics import METRIC_KEYS
from unimmad.report.measured_at import measured_at
from unimmad.report.report import ClassEntry, Report, class_entry, read_class
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.documents import read_json
from unimmad.serialization.validation import Count, Entry, validated

FORMAT = 1
FACTS = ("method", "recipe", "backbone", "image size", "blur", "image score", "masks", "precision")
"""Of the reports' headers: what must be the same of all seeds of a method."""
OF_A_RUN = frozenset(
    {
        *("training.seed", "training.steps", "training.epochs", "training.warmup_steps", "training.log_every"),
        *("training.evaluate_every", "training.checkpoint_every", "training.keep_checkpoints", "training.compile"),
        *("training.activation_checkpointing", "training.channels_last", "data.workers", "data.on_error"),
        *("data.cache_gb", "data.feature_cache_gb", "data.resized_cache_gb"),
        *("model.max_bank_gb", "model.search.max_bank_gb"),
    }
)
"""What may differ between seeds of a method, where minutes were asked for or on another machine, too."""
NAME = "result.json"


class CostEntry(Entry):
    """What a method costs."""

    parameters: Count
    """Of the network that is scored with."""
    trained: Count
    """Of them, those that were trained; 0 of a fitted method."""
    gflop: Annotated[float, Field(ge=0)]
    """10^9 operations of scoring a sample, 2 for each multiply-add; the mean of those measured."""
    images_per_second: Annotated[float, Field(ge=0)]
    """Samples scored in a second, in batches."""
    peak_gib: Annotated[float, Field(ge=0)]
    """Most memory of a process that loads the model and scores, in 2^30 bytes."""
    device: str


class ResultEntry(Entry):
    """The file."""

    format: Count
    method: str
    seed: int
    fingerprint: str
    header: dict[str, str]
    classes: Annotated[list[ClassEntry], Field(min_length=1)]
    steps: Count
    minutes: Annotated[float, Field(ge=0)] | None
    """Of training; None where nobody took the time."""
    cost: CostEntry
    recipe: dict[str, Any] | None = None


_SCHEMA = TypeAdapter(ResultEntry)
_COST = TypeAdapter(CostEntry)


@dataclass(frozen=True)
class Result:
    """One finished cell."""

    method: str
    seed: int
    report: Report
    """Its header says how the numbers came about."""
    steps: int
    minutes: float | None
    cost: CostEntry
    recipe: Mapping[str, Any] | None = None
    """What it was made by (:func:`told_recipe`), to make it again; None: an earlier version did not keep it."""


@dataclass(frozen=True)
class Spread:
    """A number over seeds."""

    mean: float
    std: float | None
    """Standard deviation of a sample; None of one seed."""


@dataclass(frozen=True)
class MethodResults:
    """A method's results, a seed each."""

    method: str
    results: tuple[Result, ...]

    @property
    def classes(self) -> list[tuple[str, str]]:
        """Dataset and class, in the order of the first seed's report."""
        return [(entry.dataset, entry.class_name) for entry in self.results[0].report.classes]

    def of_class(self, dataset: str, class_name: str) -> dict[str, Spread | None]:
        return spreads(
            entry.metrics
            for result in self.results
            for entry in result.report.classes
            if (entry.dataset, entry.class_name) == (dataset, class_name)
        )

    def of_dataset(self, dataset: str) -> dict[str, Spread | None]:
        """Over seeds, of the mean of its classes."""
        return spreads(result.report.mean_of_dataset(dataset).metrics for result in self.results)

    def of_all(self) -> dict[str, Spread | None]:
        """Over seeds, of the mean of the datasets."""
        return spreads(result.report.mean_of_datasets().metrics for result in self.results)


def spreads(metrics: Iterable[Mapping[str, float | None]]) -> dict[str, Spread | None]:
    """By metric; None where some seed leaves it undefined."""
    of_seeds = list(metrics)
    return {key: _spread([values[key] for values in of_seeds]) for key in METRIC_KEYS}


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def best_of(of_methods: Mapping[str, Spread | None]) -> set[str]:
    """The methods of the highest mean, and those that do not differ from it by more than either's spread over seeds."""
    known = {method: spread for method, spread in of_methods.items() if spread is not None}
    if not known:
        return set()
    first = max(known.values(), key=lambda spread: spread.mean)
    return {
        method
        for method, spread in known.items()
        if first.mean - spread.mean <= max(first.std or 0.0, spread.std or 0.0)
    }


def write_result(folder: Path, result: Result, fingerprint: str) -> Path:
    """Write result.json, which makes a cell done.

    Raises:
        ValueError: the folder can't be written to.
    """
    content: dict[str, Any] = {
        "format": FORMAT,
        "method": result.method,
        "seed": result.seed,
        "fingerprint": fingerprint,
        "header": result.report.header,
        "classes": [class_entry(entry) for entry in result.report.classes],
        "steps": result.steps,
        "minutes": result.minutes,
        "cost": result.cost.model_dump(),
        "recipe": result.recipe,
    }
    path = folder / NAME
    write_text_aside(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def read_cost(path: Path) -> CostEntry:
    """What cost.json says.

    Raises:
        ValueError: the file can't be read, or says something else.
    """
    return validated(_COST, _content(path), str(path), "compare again")


def read_result(path: Path) -> tuple[Result, str]:
    """A result and its fingerprint.

    Raises:
        ValueError: the file can't be read, or is of another format.
    """
    remedy = "remove it and compare again"
    content = _content(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a result of format {FORMAT}; {remedy}")
    entry = validated(_SCHEMA, content, str(path), remedy)
    report = Report(entry.header, tuple(read_class(of_class) for of_class in entry.classes))
    result = Result(entry.method, entry.seed, report, entry.steps, entry.minutes, entry.cost, entry.recipe)
    return result, entry.fingerprint


def told_recipe(recipe: Recipe) -> dict[str, Any]:
    """All settings of a recipe, but for places of one machine: of a file of weights its name, and no cache folder."""
    told: dict[str, Any] = recipe.model_dump(mode="json", exclude={"data": {"cache_folder"}})
    if "backbone_weights" in told["model"]:
        told["model"]["backbone_weights"] = Path(told["model"]["backbone_weights"]).name
    return told


def _content(path: Path) -> Any:
    try:
        return read_json(path)
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None


def by_method(results: Iterable[Result], order: Sequence[str]) -> list[MethodResults]:
    """The results of each method, by seed; methods of ``order`` first.

    Raises:
        ValueError: a method has one seed twice, or its seeds were scored on other classes or made by other settings, or
            pixels were measured at different sizes.
    """
    results = list(results)
    grouped: dict[str, list[Result]] = {method: [] for method in order}
    for result in results:
        grouped.setdefault(result.method, []).append(result)
    found = [
        MethodResults(method, tuple(sorted(of_method, key=lambda result: result.seed)))
        for method, of_method in grouped.items()
        if of_method
    ]
    for one in found:
        seeds = [result.seed for result in one.results]
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"there are two results of {one.method}, seed {max(seeds, key=seeds.count)}")
        if len({tuple((e.dataset, e.class_name) for e in result.report.classes) for result in one.results}) > 1:
            raise ValueError(f"the results of {one.method} are over different classes; compare on the same data")
        for fact in FACTS:
            if len(said := {result.report.header.get(fact, "") for result in one.results}) > 1:
                raise ValueError(f"the results of {one.method} differ in {fact}: {'; '.join(sorted(said))}")
        _check_recipes(one)
    sizes = {measured_at(result.report.header): f"{result.method}, seed {result.seed}" for result in results}
    if len(sizes) > 1:
        of_sizes = "; ".join(f"{who}: {size}" for size, who in sorted(sizes.items()))
        raise ValueError(f"the results' metrics are at different sizes, which no table can compare: {of_sizes}")
    return found


def _check_recipes(found: MethodResults) -> None:
    """
    Raises:
        ValueError: two results of the method, of those that keep their recipe, have other settings.
    """
    first, *others = [flat_settings(one.recipe) for one in found.results if one.recipe is not None] or [{}]
    for other in others:
        # A setting that only one of them has is younger than the other.
        for key in sorted(first.keys() & other.keys() - OF_A_RUN):
            if key.startswith(("model.", "data.", "training.")) and first[key] != other[key]:
                raise ValueError(
                    f"the results of {found.method} differ in {key}: {first[key]}; {other[key]}; variants need labels "
                    "of their own, --methods LABEL=METHOD"
                )


def check_apart(found: Iterable[tuple[str, int, Path]]) -> None:
    """Check that no two of these files are of one method and seed.

    Args:
        found: method, seed and the file of each result, also of those that are still to be made.

    Raises:
        ValueError: two are; names both files.
    """
    files: dict[tuple[str, int], Path] = {}
    for method, seed, path in found:
        if (method, seed) in files:
            raise ValueError(
                f"{files[method, seed]} and {path} are both of {method}, seed {seed}; a table takes one of them"
            )
        files[method, seed] = path


def fingerprint(recipe: Mapping[str, Any], data_digest: str) -> str:
    """Of all that a cell's numbers depend on."""
    return hashlib.sha256(json.dumps([recipe, data_digest], sort_keys=True).encode()).hexdigest()
