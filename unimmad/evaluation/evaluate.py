"""A checkpoint's report: tables and pictures in a folder. What ``tools/evaluate.py`` and the trainer call."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from unimmad.checkpoint.loading import LoadedCheckpoint
from unimmad.data.index import Split
from unimmad.data.location import DataFolder, shown
from unimmad.data.shard_cache import ShardCache
from unimmad.data.shard_set import ShardSet
from unimmad.data.skipping import OnError, SkipLog, summary
from unimmad.evaluation.figures import SamplePicture, save_class_figure, save_overview
from unimmad.evaluation.report import ClassResult, Report
from unimmad.evaluation.run import MaskRule, evaluate_classes
from unimmad.evaluation.tables import write_tables

PICTURES = "pictures"
OVERVIEW = "overview.png"


@dataclass(frozen=True)
class Evaluation:
    """A finished report and where its files lie."""

    report: Report
    tables: tuple[Path, ...]
    overview: Path | None
    class_pictures: tuple[Path, ...]


def evaluate_checkpoint(
    checkpoint: LoadedCheckpoint,
    data: Sequence[DataFolder],
    output: Path,
    *,
    split: Split = "test",
    device: torch.device,
    workers: int,
    mask_resize: MaskRule = "nearest",
    progress: bool = True,
    cache: ShardCache | None = None,
    on_error: OnError = "stop",
) -> Evaluation:
    """Evaluate on ``split`` of the shard folders ``data`` and write tables and pictures into ``output``.

    Shards from URLs go through ``cache``. With ``on_error="skip"`` corrupt samples are left out, and the report's
    header says how many.

    Raises:
        ValueError: the data can't be read or don't fit the model, or ``output`` can't be written.
    """
    shards = ShardSet.open(data, cache)
    skip_log = SkipLog("it is left out")
    model = checkpoint.model.to(device)
    results: list[ClassResult] = []
    in_overview: list[SamplePicture] = []
    class_pictures: list[Path] = []
    scored_classes = evaluate_classes(
        model,
        shards,
        split,
        checkpoint.recipe.evaluation,
        device=device,
        workers=workers,
        mask_resize=mask_resize,
        progress=progress,
        on_error=on_error,
        skip_log=skip_log,
    )
    for scored in scored_classes:
        results.append(scored.result)
        if scored.pictures:
            path = output / PICTURES / f"{_file_name(scored.result)}.png"
            save_class_figure(scored.pictures, path)
            class_pictures.append(path)
            in_overview.append(scored.pictures[0])
    if not results:
        raise ValueError(f"no sample of the {split} split can be read: {summary(skip_log.shards)}")
    header = report_header(checkpoint, data, split, device, mask_resize)
    if skipped := summary(skip_log.shards):
        header["left out"] = skipped
    report = Report(header, tuple(results))
    overview = output / OVERVIEW if in_overview else None
    if overview is not None:
        save_overview(in_overview, overview)
    return Evaluation(report, write_tables(report, output), overview, tuple(class_pictures))


def report_header(
    checkpoint: LoadedCheckpoint, data: Sequence[DataFolder], split: Split, device: torch.device, mask_resize: MaskRule
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
        "data": f"{', '.join(map(_data_name, data))} ({split} split)",
        "image size": f"{size} x {size}",
        "blur": blur if settings.blur_sigma else "none",
        "image score": f"mean of the map's top {top} of {size * size} values",
        "masks": f"resized {mask_resize}, anomalous where > 0",
        "precision": f"fp32 on {device.type}",
    }


def _data_name(folder: DataFolder) -> str:
    return _relative(folder) if isinstance(folder, Path) else shown(folder.url)


def _relative(path: Path) -> str:
    """A path as people would type it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _file_name(result: ClassResult) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{result.dataset}-{result.class_name}")
