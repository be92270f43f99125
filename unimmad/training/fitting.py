"""Fitting: every training sample once. Of a method that is not trained it is the whole run."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor
from tqdm import tqdm

from unimmad.checkpoint.folder import CheckpointFolder
from unimmad.checkpoint.state import Layout, build_state
from unimmad.checkpoint.writing import write_model
from unimmad.config import Recipe
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.reading.skipping import SkipLog
from unimmad.data.reading.stream import evaluation_rounds
from unimmad.data.roi import Rois
from unimmad.data.sample import Batch, collate
from unimmad.data.views import Geometry
from unimmad.evaluation.geometry import training_geometry
from unimmad.evaluation.tiling import view_samples
from unimmad.model.backends.tf32 import without_tf32
from unimmad.model.method import Fitted, FittedMethod
from unimmad.parallel.world import World
from unimmad.ranks.exchange import Letter
from unimmad.serialization.folder_lock import FolderLock
from unimmad.training.checkpointing import RunFacts

logger = logging.getLogger(__name__)

STEP = 1
"""Of the only checkpoint."""


def fit(
    model: FittedMethod,
    shards: ShardSet,
    facts: RunFacts,
    checkpoints: CheckpointFolder,
    world: World,
    lock: FolderLock,
) -> None:
    """Show ``model`` every training sample, each to one rank, and write what rank 0 makes of them. Collective.

    Raises:
        ValueError: a sample can't be read, there are too few or too many, or the checkpoint can't be written.
    """
    logger.info(
        "%s is fitted, not trained: of the recipe's section training, the seed alone counts", facts.recipe.method
    )
    started = time.monotonic()
    model.to(world.device).eval()
    show_samples(model, shards, facts.recipe, world, adding=facts.growth is not None)
    world.on_main(lock.check)
    path = world.on_main(lambda: _write(model, facts, checkpoints, world, time.monotonic() - started))
    if world.is_main:
        tqdm.write(f"fitted: checkpoint {path}")


def show_samples(model: Fitted, shards: ShardSet, recipe: Recipe, world: World, adding: bool = False) -> None:
    """Fit ``model`` to every training sample, each shown to one rank; rank 0's is fitted then. Collective.

    Args:
        model: a new one; with ``adding`` one that is fitted, and stays so to what it was fitted to.
        shards: the training samples.
        recipe: how they are read.
        world: all ranks.
        adding: whether the samples are of classes that come in.

    Raises:
        ValueError: a sample can't be read, or there are too few or too many.
    """
    model.begin(recipe.training.seed, adding)
    with world.ranks.together(), without_tf32():
        _show(model, shards, recipe, world)
        model.finish(lambda tensors: _gather(tensors, world))


@torch.inference_mode()
def _show(model: Fitted, shards: ShardSet, recipe: Recipe, world: World) -> None:
    samples = sum(map(len, shards.classes("train").values()))
    geometry, shards = training_geometry(recipe), shards.with_rois(Rois())  # where to look may change later
    rounds = evaluation_rounds(
        shards,
        "train",
        rank=world.rank,
        world_size=world.size,
        image_size=recipe.model.image_size,
        batch_size=recipe.evaluation.batch_size,
        workers=recipe.data.workers,
        on_error=recipe.data.on_error,
        skip_log=SkipLog("it is left out"),
        geometry=geometry,
    )
    with tqdm(total=samples, desc=f"fit {recipe.name}", unit="image", disable=not world.is_main) as bar:
        for batch in rounds:
            if batch is not None:
                for of_views, views in _view_batches(batch, geometry, recipe):
                    _collect(model, of_views, views, world.device)
                bar.update(min(len(batch.samples) * world.size, samples - bar.n))


def _view_batches(batch: Batch, geometry: Geometry, recipe: Recipe) -> Iterator[tuple[Batch, list[int]]]:
    """The batch itself, or all views of its samples; and which view of its sample's each is."""
    if geometry.tiles is None:
        yield batch, [0] * len(batch.samples)
        return
    cuttings = (view_samples(sample, geometry, recipe.model.image_size) for sample in batch.samples)
    views = (view for cutting in cuttings for view in enumerate(map(cutting.cut, cutting.views)))
    while of_views := list(islice(views, recipe.evaluation.batch_size)):
        numbers, samples = zip(*of_views, strict=True)
        yield collate(samples), list(numbers)


def _collect(model: Fitted, batch: Batch, views: list[int], device: torch.device) -> None:
    on_device = batch.to(device)
    model.collect(
        on_device.images_TCHW,
        batch.tokens_per_sample,
        on_device.slot_of_token_T,
        [sample.class_name for sample in batch.samples],
        [sample.photograph for sample in batch.samples],
        views,
    )


def _gather(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """See ``unimmad.model.method.Gather``."""
    if world.size == 1:
        return tensors
    letters = [] if world.is_main else [Letter(0, save({name: t.contiguous() for name, t in tensors.items()}))]
    _, inbox = world.ranks.exchange(None, letters)
    if not world.is_main:
        return {}
    of_ranks = [tensors, *(load(content) for contents in inbox[1:] for content in contents)]
    return {name: torch.cat([of_rank[name] for of_rank in of_ranks]) for name in tensors}


def _write(model: FittedMethod, facts: RunFacts, checkpoints: CheckpointFolder, world: World, seconds: float) -> Path:
    state = build_state(
        facts.recipe,
        step=STEP,
        finished=facts.growth is None,  # that of a run that grows is yet to be reviewed
        backbone_weights=facts.backbone_weights,
        data=facts.data,
        layout=Layout(world.size),
        trained_on=facts.trained_on,
        fitted=model.describe(),
        seconds=seconds,
        growth=facts.growth,
    )
    return write_model(checkpoints, model, state)
