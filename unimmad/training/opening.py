"""What a training run draws from: samples, their order, caches."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimmad.checkpoint.folder import STATE_NAME, find_checkpoint, read_state
from unimmad.checkpoint.trained_on import TrainedOn, read_trained_on
from unimmad.config import Recipe, check_dataset_weights
from unimmad.data.index import DatasetEntry
from unimmad.data.location import DataFolder
from unimmad.data.reading.order import TrainingOrder
from unimmad.data.reading.resized_cache import GB, ResizedCache, expected_bytes
from unimmad.data.reading.shard_cache import ShardCache
from unimmad.data.reading.shard_files import SampleRef
from unimmad.data.reading.shard_set import ShardSet
from unimmad.parallel.engine import Engine
from unimmad.parallel.world import World
from unimmad.ranks.processes import ranks_here
from unimmad.training.arguments import TrainArguments
from unimmad.training.feature_cache import FeatureCache, fingerprint
from unimmad.training.growth import GrowingData, check_same_growth, open_growing_data
from unimmad.training.run_folder import RunFolder, check_same_data

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunData:
    """What a run draws from."""

    shards: ShardSet
    order: TrainingOrder[SampleRef]
    trained_on: TrainedOn
    growing: GrowingData | None
    """Where the run grows out of another checkpoint."""
    growth: dict[str, Any] | None = None
    """What it was begun with."""


def open_data(arguments: TrainArguments, data: list[DataFolder], run: RunFolder, world: World) -> RunData:
    """The samples as this rank's node sees them, and the order in which they come."""
    recipe = arguments.recipe
    cache = ShardCache.of(recipe.data.cache_folder, recipe.data.cache_gb)
    growing, growth = None, None
    if arguments.growth is not None:
        growing = open_growing_data(arguments.growth, data, cache, recipe.training.seed)
        growth = arguments.growth.facts(growing.replayed)
        if recipe.data.sampling == "natural" and world.is_main:
            logger.warning(
                "sampling is natural: new classes are not half of the draws, but as many as they have images"
            )
        shards, trained_on = growing.shards, growing.trained_on
    else:
        shards = ShardSet.open(data, cache, _slots_before(run.resume_from or arguments.init_from))
        trained_on = TrainedOn.of(
            shards.datasets, {name: [ref.entry for ref in refs] for name, refs in shards.classes("train").items()}
        )
    if run.resume_from is not None:
        check_same_growth(run.resume_from, growth)
    check_dataset_weights(recipe.data.dataset_weights, trained_on.datasets if growing else shards.datasets)
    if run.resume_from is not None:
        check_same_data(run.resume_from, trained_on)
    if recipe.training.evaluate_every and not shards.has("test"):
        raise ValueError(
            f"training.evaluate_every is {recipe.training.evaluate_every}, but the data have no test sample; "
            "use --set training.evaluate_every=0, or --data with some"
        )
    if shards.max_slot >= recipe.model.modality_slots:
        raise ValueError(
            f"the data use {shards.max_slot + 1} modality slots and the recipe's model has "
            f"{recipe.model.modality_slots}; use --set model.modality_slots={shards.max_slot + 1}"
        )
    if recipe.data.resized_cache_gb:
        shards.resized = _resized_cache(recipe, shards, world)
    order = TrainingOrder(
        shards.classes("train"),
        lambda ref: (ref.folder, ref.entry.shard),
        recipe.training.seed,
        recipe.training.global_batch // recipe.training.accumulation,
        recipe.training.accumulation,
        recipe.data.sampling,
        None if growing is None else growing.weights,
    )
    return RunData(shards, order, trained_on, growing, growth)


def _slots_before(source: Path | None) -> dict[str, DatasetEntry] | None:
    """The datasets, with their slots, that the weights to begin with were trained on."""
    if source is None:
        return None
    checkpoint = find_checkpoint(source)
    trained_on = read_trained_on(read_state(checkpoint), str(checkpoint / STATE_NAME))
    return None if trained_on is None else trained_on.datasets


def _resized_cache(recipe: Recipe, shards: ShardSet, world: World) -> ResizedCache:
    """Room in it is made once a node, before any rank takes some."""
    limit = int(recipe.data.resized_cache_gb * GB)
    cache = ResizedCache(shards.cache.folder, recipe.model.image_size, limit, recipe.data.aspect)
    if world.local_rank == 0:
        kept = cache.make_room(expected_bytes(shards.indexes, cache.image_size))
        logger.info("resized images in %s: %.2f of %.2f GB", cache.folder, kept / GB, recipe.data.resized_cache_gb)
    return cache


def open_feature_cache(recipe: Recipe, engine: Engine, shards: ShardSet) -> FeatureCache | None:
    """Attached to the engine's model; the ranks of a node share the room."""
    if not recipe.data.feature_cache_gb:
        return None
    facts = (shards.digest(), str(recipe.model.image_size), recipe.training.precision, str(recipe.training.tf32))
    levels = recipe.model.model_dump_json(include={"level_blocks", "level_pools", "position_resampling", "blocks"})
    shaped = [levels] if any(getattr(recipe.model, key, ()) for key in ("level_blocks", "blocks")) else []
    shaped += [] if recipe.data.aspect == "stretch" else [recipe.data.aspect]
    name = fingerprint(engine.model.get_submodule("teacher"), *facts, engine.world.device.type, *shaped)
    limit = int(recipe.data.feature_cache_gb * GB) // ranks_here(engine.world.size)
    cache = FeatureCache(shards.cache.folder / "features" / name, limit)
    cache.attach(engine.model)
    logger.info("features of the teacher in %s", cache.folder)
    return cache
