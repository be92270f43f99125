"""A checkpoint's report: tables and pictures in a folder. What ``tools/evaluate.py`` and the trainer call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from unimmad.checkpoint.loading import LoadedCheckpoint
from unimmad.data.index import Split
from unimmad.data.shard_set import ShardSet
from unimmad.evaluation.pictures import Pictures
from unimmad.evaluation.report import ClassResult, Report
from unimmad.evaluation.run import MaskRule, evaluate_classes
from unimmad.evaluation.tables import write_tables


@dataclass(frozen=True)
class Evaluation:
    """A finished report and where its files lie."""

    report: Report
    tables: tuple[Path, ...]
    overview: Path | None
    page: Path
    """All tables and pictures as HTML."""


def evaluate_checkpoint(
    checkpoint: LoadedCheckpoint,
    data: Sequence[Path],
    output: Path,
    *,
    split: Split = "test",
    device: torch.device,
    workers: int,
    mask_resize: MaskRule = "nearest",
    progress: bool = True,
) -> Evaluation:
    """Evaluate on ``split`` of the shard folders ``data`` and write tables and pictures into ``output``.

    Raises:
        ValueError: the data can't be read or don't fit the model, or ``output`` can't be written.
    """
    shards = ShardSet.open(data)
    model = checkpoint.model.to(device)
    results: list[ClassResult] = []
    pictures = Pictures(output, checkpoint.recipe.model.kernel_sizes)
    scored_classes = evaluate_classes(
        model,
        shards,
        split,
        checkpoint.recipe.evaluation,
        device=device,
        workers=workers,
        mask_resize=mask_resize,
        progress=progress,
    )
    for scored in scored_classes:
        results.append(scored.result)
        pictures.add(scored)
    report = Report(report_header(checkpoint, data, split, device, mask_resize), tuple(results))
    tables = write_tables(report, output)
    return Evaluation(report, tables, pictures.overview, pictures.finish(report, tables))


def report_header(
    checkpoint: LoadedCheckpoint, data: Sequence[Path], split: Split, device: torch.device, mask_resize: MaskRule
) -> dict[str, str]:
    """Everything that two papers may differ in, in words."""
    recipe = checkpoint.recipe
    settings = recipe.evaluation
    size = recipe.model.image_size
    top = max(1, int(size * size * settings.top_share))
    blur = f"Gaussian {settings.blur_kernel} x {settings.blur_kernel}, sigma {settings.blur_sigma:g}, zero padding"
    return {
        "checkpoint": _relative(checkpoint.folder),
        "recipe": recipe.name,
        "backbone": f"{recipe.model.backbone}, weights: {checkpoint.backbone_weights}",
        "data": f"{', '.join(_relative(folder) for folder in data)} ({split} split)",
        "image size": f"{size} x {size}",
        "blur": blur if settings.blur_sigma else "none",
        "image score": f"mean of the map's top {top} of {size * size} values",
        "masks": f"resized {mask_resize}, anomalous where > 0",
        "precision": f"fp32 on {device.type}",
    }


def _relative(path: Path) -> str:
    """A path as people would type it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
