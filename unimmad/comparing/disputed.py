"""The samples on which methods disagree most, and their heat maps side by side."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from unimmad.checkpoint.folder import find_checkpoint
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.config import Precision
from unimmad.data.reading.shard_set import ShardSet
from unimmad.evaluation.geometry import scoring_geometry
from unimmad.evaluation.scoring import chosen_precision, scoring_form
from unimmad.evaluation.shared_drawing import sample_picture
from unimmad.methods.registry import METHODS, Registry
from unimmad.report.drawing import (
    FONT_SIZE,
    Limits,
    draw_contour,
    heat_limits,
    show_blank,
    show_image,
    show_map,
)
from unimmad.report.figures import SamplePicture, new_figure
from unimmad.report.glyphs import drawable
from unimmad.report.table import harmless
from unimmad.report.tables import IMAGE_SCORES
from unimmad.serialization.text import one_line

COUNT = 16
"""Samples shown."""
OF_A_CLASS = 4
"""At most."""
_CELL_INCHES = 1.7
_HEAD_INCHES = 0.55

Name = tuple[str, str]
"""``DATASET/CLASS`` and key."""


@dataclass(frozen=True)
class Disputed:
    """A sample, and the share of its class's samples that each method scores lower."""

    name: Name
    defect: str
    ranks: Mapping[str, float]

    @property
    def disagreement(self) -> float:
        return max(self.ranks.values()) - min(self.ranks.values())


def most_disputed(evaluations: Mapping[str, Path], count: int = COUNT, of_a_class: int = OF_A_CLASS) -> list[Disputed]:
    """Those whose ranks differ most, first, a few of each class; of samples that all methods scored.

    Args:
        evaluations: each method's evaluation folder.
        count: how many, at most.
        of_a_class: how many of one class, at most.

    Raises:
        ValueError: a folder's scores can't be read.
    """
    ranks_of: dict[str, dict[Name, float]] = {}
    defects: dict[Name, str] = {}
    for method, folder in evaluations.items():
        scores = _scores(folder / IMAGE_SCORES)
        ranks_of[method] = _ranks({name: score for name, (score, _) in scores.items()})
        defects |= {name: defect for name, (_, defect) in scores.items()}
    common = set.intersection(*(set(ranks) for ranks in ranks_of.values())) if ranks_of else set()
    disputed = [
        Disputed(name, defects[name], {method: ranks[name] for method, ranks in ranks_of.items()})
        for name in defects
        if name in common
    ]
    chosen: dict[str, list[Disputed]] = {}
    for sample in sorted(disputed, key=lambda sample: -sample.disagreement):
        of_class = chosen.setdefault(sample.name[0], [])
        if len(of_class) < of_a_class:
            of_class.append(sample)
    ordered = sorted((s for of_class in chosen.values() for s in of_class), key=lambda sample: -sample.disagreement)
    return list(islice(ordered, count))


def _scores(path: Path) -> dict[Name, tuple[float, str]]:
    """Score and defect of each sample.

    Raises:
        ValueError: the table can't be read.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {
                (f"{row['dataset']}/{row['class']}", row["key"]): (float(row["score"]), row["defect"])
                for row in csv.DictReader(file)
            }
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} can't be read ({one_line(error)}); remove the folder and compare again") from None


def _ranks(scores: Mapping[Name, float]) -> dict[Name, float]:
    """Of each sample, the share of its class that scores lower; half of those that score the same."""
    of_class: dict[str, list[Name]] = {}
    for name in scores:
        of_class.setdefault(name[0], []).append(name)
    ranks: dict[Name, float] = {}
    for names in of_class.values():
        values = np.array([scores[name] for name in names])
        ordered = np.sort(values)
        lower, up_to = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
        ranks |= dict(zip(names, ((lower + up_to - 1) / 2 / max(1, len(values) - 1)).tolist(), strict=True))
    return ranks


def pictures_of(
    run: Path,
    shards: ShardSet,
    samples: Sequence[Disputed],
    device: torch.device,
    precision: Precision | None,
    methods: Registry = METHODS,
) -> dict[Name, SamplePicture]:
    """Each sample scored by a run's newest checkpoint, but those that ``shards`` do not have.

    Raises:
        ValueError: the checkpoint or a sample can't be read.
    """
    checkpoint = load_checkpoint(find_checkpoint(run), verify=False, methods=methods)
    settings, geometry = checkpoint.recipe.evaluation, scoring_geometry(checkpoint.recipe)
    model = scoring_form(checkpoint.model, settings.model_copy(update={"compile": False}), device)
    refs = {
        (str(harmless(class_name)), str(harmless(ref.entry.key))): ref
        for class_name, of_class in shards.classes("test").items()
        for ref in of_class
    }
    chosen = chosen_precision(precision, device)
    return {
        sample.name: sample_picture(
            model, shards, refs[sample.name], settings, device, precision=chosen, geometry=geometry
        )
        for sample in samples
        if sample.name in refs
    }


def class_limits(pictures: Iterable[SamplePicture]) -> dict[str, Limits]:
    """One method's colour scale for each class: of all its maps that are shown."""
    maps: dict[str, list[NDArray[np.floating]]] = {}
    for picture in pictures:
        maps.setdefault(picture.class_name, []).append(picture.map_HW)
    return {name: heat_limits(of_class) for name, of_class in maps.items()}


def disputed_figure(
    sample: Disputed, of_methods: Mapping[str, SamplePicture], limits_of: Mapping[str, Mapping[str, Limits]]
) -> Figure:
    """Modalities, mask, and the map of every method in one row.

    Args:
        sample: whose ranks stand above the maps.
        of_methods: its picture by each method.
        limits_of: each method's colour scales, by class.
    """
    first = next(iter(of_methods.values()))
    columns = len(first.images) + 1 + len(of_methods)
    figure = new_figure(columns * _CELL_INCHES, _CELL_INCHES + _HEAD_INCHES)
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    title = drawable(f"{first.class_name}   {first.key}   {sample.defect}")
    figure.suptitle(title, x=0.005, ha="left", fontsize=FONT_SIZE)
    for ax, (name, image) in zip(axes, first.images, strict=False):
        show_image(ax, image)
        ax.set_title(drawable(name), fontsize=FONT_SIZE)
    mask_ax = axes[len(first.images)]
    if first.mask_HW is None:
        show_blank(mask_ax, first.map_HW.shape, "no mask")
    else:
        show_image(mask_ax, first.mask_HW.astype(np.float32), cmap="gray", vmin=0, vmax=1)
    mask_ax.set_title("mask", fontsize=FONT_SIZE)
    for ax, (method, picture) in zip(axes[len(first.images) + 1 :], of_methods.items(), strict=True):
        show_map(ax, picture.map_HW, limits_of[method][picture.class_name])
        draw_contour(ax, picture.mask_HW)
        ax.set_title(drawable(f"{method}: above {sample.ranks[method]:.0%}"), fontsize=FONT_SIZE)
    return figure
