"""What stands above every table: how the numbers came about, and whatever two papers may differ in."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from unimmad.checkpoint.folder import STATE_NAME
from unimmad.checkpoint.loading import LoadedCheckpoint
from unimmad.config import Blur, Precision
from unimmad.data.index import Split, load_index
from unimmad.data.location import DataFolder, recorded_data_folder, shown
from unimmad.data.mask_resize import MaskRule
from unimmad.data.modality import read_otherwise
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.views import Aspect, Geometry, Resolution
from unimmad.evaluation.scoring import numerics
from unimmad.report.measured_at import FACT, IN_WORDS
from unimmad.report.scored_class import Resizing, ScoredClass
from unimmad.serialization.text import listed

MOST_CLASSES = 5
"""That a fact names."""
TOO_SMALL = 4.0
"""Images that are made smaller than by this lose what is small in them."""
USE_TILES = "use tiles (training.tiles, evaluation.tiles)"
_MASKS: dict[MaskRule, str] = {
    "area": "resized by area, anomalous where any part of a pixel is > 0",
    "nearest": "resized nearest, anomalous where > 0",
    "bilinear": "resized bilinear, anomalous where > 0",
}
_LARGEST = "; a pixel's value at the model's size the largest of its area"
_TRAINED_WHOLE = "; training saw whole images, so that parts of them may look unusual to the model"
_ASPECTS: dict[Aspect, str] = {
    "stretch": "images are stretched to squares",
    "letterbox": "kept, images are padded to squares; padding is left out of scores and metrics",
    "crop": "kept, the middle square of an image alone is looked at and measured",
}


def report_header(
    checkpoint: LoadedCheckpoint,
    data: Sequence[DataFolder],
    shards: ShardSet,
    split: Split,
    device: torch.device,
    mask_resize: MaskRule,
    precision: Precision,
    modalities: Sequence[str] | None,
) -> dict[str, str]:
    """The facts of one evaluation in words; ``shards`` are the samples that were evaluated, read from ``data``."""
    recipe = checkpoint.recipe
    settings = recipe.evaluation
    size = recipe.model.image_size
    windows = (size - settings.score_pool + 1) ** 2
    top = max(1, int(windows * settings.top_share))
    pooled = f" after a mean over {settings.score_pool} x {settings.score_pool}" if settings.score_pool > 1 else ""
    header = {
        "checkpoint": _relative(checkpoint.folder),
        "method": recipe.method,
        "recipe": recipe.name,
        "backbone": f"{recipe.model.backbone}, weights: {checkpoint.backbone_weights}",
        "data": data_fact(data, split),
        "image size": f"{size} x {size}",
        FACT: IN_WORDS[settings.resolution],
        "blur": _in_words(settings.blur(size)),
        "image score": f"mean of the map's top {top} of {windows} values{pooled}",
        "modalities joined": checkpoint.model.modalities_joined,
        "masks": _MASKS[mask_resize] if settings.resolution == "model" else "as stored, anomalous where > 0",
        "precision": numerics(precision, device),
    }
    if modalities is not None:
        header["modalities"] = f"{', '.join(modalities)} only"
    trained = checkpoint.trained_on.datasets if checkpoint.trained_on else {}
    if other := read_otherwise(shards.datasets, trained):
        header["read otherwise"] = "; ".join(other)
    if repeated := _duplicates(shards):
        header["duplicates"] = repeated
    if unmarked := _without_masks(shards, split):
        header["without masks"] = unmarked
    if added := [checkpoint.added[name] for name in shards.classes(split) if name in checkpoint.added]:
        header["added classes"] = _some([f"{one.name} {one.in_words()}" for one in added])
    if unseen := _unseen_classes(checkpoint, shards, split):
        header["not trained on"] = ", ".join(unseen)
        if checkpoint.model.kernel_sizes:
            header["not trained on"] += "; the router chooses experts for them all the same"
    return header


def resizing_facts(
    of_classes: Mapping[str, Resizing],
    geometry: Geometry,
    mask_resize: MaskRule,
    resolution: Resolution = "model",
    trained_whole: bool = False,
) -> dict[str, str]:
    """What is to be known of images that were not of the model's size.

    Args:
        of_classes: by ``DATASET/CLASS``.
        geometry: how they came to its size.
        mask_resize: how their masks did.
        resolution: whether they did.
        trained_whole: whether training saw images as one piece each.
    """
    at_model = resolution == "model"
    facts = {} if geometry.aspect == "stretch" else {"aspect": _ASPECTS[geometry.aspect]}
    if geometry.tiles is not None:
        beside = ", and the whole image" if geometry.tiles.whole else ""
        side = geometry.tiles.size
        facts["tiles"] = (
            f"{side} x {side} pixels, {geometry.tiles.overlap} shared{beside}; an image's score is the highest of its "
            f"tiles'{_LARGEST if at_model else ''}{_TRAINED_WHOLE if trained_whole else ''}"
        )
    lost = {name: found for name, found in of_classes.items() if found.lost}
    if lost:
        way_out = " (--mask-resize area keeps what is in sight)" if mask_resize != "area" and at_model else ""
        facts["masks lost"] = (
            f"{_some([_loss(*one) for one in lost.items()])}: no pixel shows them, and what is there counts as normal"
            f"{way_out}"
        )
    smaller = {name: found for name, found in of_classes.items() if found.shrinking > TOO_SMALL}
    if smaller:
        facts["made smaller"] = (
            f"{_some([_shrinking(*one) for one in smaller.items()])}; defects of a few pixels are lost: {USE_TILES}"
        )
    return facts


def _loss(name: str, found: Resizing) -> str:
    emptied = f", all of {found.emptied} masks" if found.emptied else ""
    return f"{name} {found.lost} of {found.regions} regions{emptied}"


def _shrinking(name: str, found: Resizing) -> str:
    return f"{name} up to {found.shrinking:.1f} times ({found.width} x {found.height})"


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - MOST_CLASSES} classes more" if len(texts) > MOST_CLASSES else ""
    return f"{', '.join(texts[:MOST_CLASSES])}{more}"


def rois_in_words(shards: ShardSet, class_names: Iterable[str], scored: Iterable[ScoredClass]) -> str:
    """What of the classes' images was looked at, and what was left out for it; empty where there is no region."""
    names = list(class_names)
    used = {name: roi for name in names if (roi := shards.rois.of(name)) is not None}
    if not used:
        return ""
    of_classes = "; ".join(f"{name}: {roi.in_words()}" for name, roi in used.items())
    if len(used) == len(names) and len(set(used.values())) == 1:
        of_classes = f"all classes: {next(iter(used.values())).in_words()}"
    outside = sum(of_class.outside for of_class in scored)
    images = "image" if outside == 1 else "images"
    left = f"; left out: {outside} anomalous {images} marked outside of them alone" if outside else ""
    return f"{of_classes}; scores, metrics and pictures are of these pixels alone{left}"


def data_fact(data: Sequence[DataFolder], split: Split) -> str:
    """What was evaluated, in words."""
    return f"{', '.join(map(_data_name, data))} ({split} split)"


def _duplicates(shards: ShardSet) -> str:
    """What is in the shards more than once and makes figures too high or too low; empty where nothing."""
    found = [index.duplicates for index in shards.indexes if index.duplicates is not None]
    tested, exact = (sum(getattr(one, name) for one in found) for name in ("trained_and_tested", "exact"))
    trained = f", {tested} of them test images that are trained on" if tested else ""
    return f"{exact} samples have the pixels of another one{trained}" if exact else ""


def _without_masks(shards: ShardSet, split: Split) -> str:
    """Anomalous samples that pixel metrics leave out of classes that have them; empty where there is none."""
    counts: Counter[str] = Counter()
    marked = set()
    for index in shards.indexes:
        for name, samples in index.classes(split).items():
            counts[name] = sum(sample.anomalous and sample.mask is None for sample in samples)
            marked |= {name} if any(sample.mask is not None for sample in samples) else set()
    named = [f"{counts[name]} of {name}" for name in sorted(marked) if counts[name]]
    return f"{listed(named)} anomalous samples, which pixel metrics leave out" if named else ""


def _in_words(blur: Blur) -> str:
    if not blur.sigma:
        return "none"
    border = "zero padding" if blur.border == "zeros" else "mirrored at the border"
    return f"Gaussian {blur.kernel} x {blur.kernel}, sigma {blur.sigma:g}, {border}"


def _unseen_classes(checkpoint: LoadedCheckpoint, shards: ShardSet, split: Split) -> list[str]:
    """Classes evaluated that training did not see; none where nothing tells what it saw."""
    known = checkpoint.trained_on
    trained = set(known.classes if known else _trained_on_folders(checkpoint))
    trained |= set(checkpoint.added) if trained else set()
    return [name for name in shards.classes(split) if trained and name not in trained]


def _trained_on_folders(checkpoint: LoadedCheckpoint) -> list[str]:
    """Of older checkpoints: what their data folders hold now; none where they are not at hand."""
    trained: list[str] = []
    try:
        for text in checkpoint.state.get("data", []):
            folder = recorded_data_folder(text, STATE_NAME)
            if not isinstance(folder, Path):
                return []
            trained.extend(load_index(folder).classes("train"))
    except ValueError:
        return []
    return trained


def _data_name(folder: DataFolder) -> str:
    return _relative(folder) if isinstance(folder, Path) else shown(folder.url)


def _relative(path: Path) -> str:
    """A path as people would type it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
