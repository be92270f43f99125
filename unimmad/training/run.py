"""One training run from arguments to the last checkpoint: gather what it needs, then loop."""

from __future__ import annotations

import logging
import math
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, cast

import torch
from torch import Tensor

from unimmad.checkpoint.digests import verify_checkpoint
from unimmad.checkpoint.folder import STATE_NAME, CheckpointFolder, find_checkpoint, read_state
from unimmad.checkpoint.loading import OPTIMIZER_PREFIX, fill_model, load_checkpoint, with_room_for
from unimmad.checkpoint.normal_maps import save_normal_maps
from unimmad.checkpoint.state import SECONDS
from unimmad.checkpoint.tensor_slices import TensorReader
from unimmad.checkpoint.trained_on import TrainedOn, read_trained_on
from unimmad.config import Recipe, check_dataset_weights
from unimmad.data.index import DatasetEntry
from unimmad.data.location import DataFolder
from unimmad.data.reading.order import TrainingOrder
from unimmad.data.reading.resized_cache import GB, ResizedCache, expected_bytes
from unimmad.data.reading.shard_cache import ShardCache
from unimmad.data.reading.shard_files import SampleRef
from unimmad.data.reading.shard_set import CorruptSampleError, ShardSet
from unimmad.data.reading.stream import expect_workers
from unimmad.data.reading.view_draw import ViewDraw
from unimmad.data.synthetic.default_set import ensure_synthetic_shards
from unimmad.evaluation.geometry import training_geometry
from unimmad.evaluation.normal_maps import measure_normals
from unimmad.methods.registry import build_method, new_model
from unimmad.model.backbone import RANDOM_WEIGHTS
from unimmad.model.backends.execution import check_compiling
from unimmad.model.backends.tf32 import choose_for_training
from unimmad.model.growing import trained_parameters
from unimmad.model.method import FittedMethod, Method
from unimmad.parallel.batchnorm import check_batchnorm
from unimmad.parallel.deepspeed_config import DeepSpeedSettings, engine_config, read_deepspeed_config
from unimmad.parallel.engine import Engine, build_engine
from unimmad.parallel.placement import effective_ep_size
from unimmad.parallel.world import World
from unimmad.ranks.errors import StoppedError
from unimmad.ranks.processes import ranks_here
from unimmad.serialization.folder_lock import FolderLock
from unimmad.serialization.text import one_line
from unimmad.training.arguments import TrainArguments
from unimmad.training.checkpointing import RunFacts, restore_optimizer
from unimmad.training.composing import Composing, described, follow_composing, kept_composing, new_composing
from unimmad.training.feature_cache import FeatureCache, fingerprint
from unimmad.training.fitting import fit
from unimmad.training.growing_run import broadcast_model, freeze_continued, review, starting_model
from unimmad.training.grown_model import check_placement
from unimmad.training.growth import GrowingData, check_same_growth, open_growing_data
from unimmad.training.loop import Trainer
from unimmad.training.run_folder import (
    LOCK_NAME,
    RunFolder,
    check_same_data,
    check_same_method,
    choose_run_folder,
    claim_run_folder,
)
from unimmad.training.schedule import Schedule
from unimmad.training.stop_request import StopRequest

logger = logging.getLogger(__name__)

CALIBRATION_STEPS = 8
"""Steps whose images set the BatchNorm statistics of a backbone without weights."""


def train(arguments: TrainArguments, world: World, stop: StopRequest | None = None) -> bool:
    """Train to the end, or until some rank gets a signal of ``stop``; then all save at the end of their step.

    Returns:
        Whether the end was reached.

    Raises:
        ValueError: something the user gave is wrong, on this rank or (SharedError) on any.
    """
    try:
        with FolderLock(LOCK_NAME, "training") as lock:
            return _train(arguments, world, stop, lock)
    except BaseException:
        world.say_failed()
        raise


def _train(arguments: TrainArguments, world: World, stop: StopRequest | None, lock: FolderLock) -> bool:
    arguments, settings, ep_size = world.together(lambda: _read_settings(arguments, world))
    recipe = arguments.recipe
    world.ranks.check_same(
        f"{recipe.model_dump_json()} {settings} {arguments.max_steps} {arguments.deterministic}",
        "another recipe, DeepSpeed configuration, --max-steps or --deterministic",
    )
    run = world.on_main(lambda: choose_run_folder(arguments.output_dir, arguments.resume, recipe))
    data = list(arguments.data) or [world.on_main(ensure_synthetic_shards)]
    found = world.together(lambda: _open_data(arguments, data, run, world))
    shards, order, trained_on, growing = found.shards, found.order, found.trained_on, found.growing
    world.ranks.check_same(shards.digest(), "other data")
    run = world.on_main(partial(claim_run_folder, run, arguments, trained_on, lock))
    fitted = run.resume_from if arguments.methods[recipe.method].is_fitted else None
    if fitted is not None and (growing is None or world.on_main(lambda: bool(read_state(fitted).get("finished")))):
        logger.info("%s is fitted already: nothing to do", run.path)
        _say_next(run, world)
        return True
    schedule = Schedule(recipe.training, order.steps_per_epoch // recipe.training.accumulation)
    model, backbone_weights = _starting_model(arguments, run, world, found)
    sizes = trained_parameters(model)
    logger.info("backbone %s, weights: %s", recipe.model.backbone, backbone_weights)
    if world.size > 1:
        world.together(lambda: check_batchnorm(model))
    if recipe.training.drawn_share and not model.sees_drawn:
        raise ValueError(
            f"training.drawn_share: {recipe.method} does not learn from anomalies drawn onto its images; set it to 0"
        )
    folders = [str(folder) for folder in (data if growing is None else growing.recorded)]
    checkpoints = CheckpointFolder(run.path)
    if isinstance(model, FittedMethod):
        if fitted is None:  # else a run that grows was stopped in its review
            facts = RunFacts(recipe, backbone_weights, folders, 0, trained_on, growth=found.growth)
            fit(model, shards if growing is None else growing.of_new(), facts, checkpoints, world, lock)
        return _conclude(arguments, run, shards, growing, world, sizes, stop)
    composing = _composing(arguments, run, world, ep_size, shards.classes("train"))
    if model.kernel_sizes:
        logger.info("C-MoE %s", described(composing, model.kernel_sizes))
    if composing is not None:
        follow_composing(model, composing)
    engine = build_engine(model, settings, recipe.training, world, ep_size)
    features = world.together(lambda: _feature_cache(recipe, engine, shards))
    start = world.together(lambda: _restore(engine, run))
    if run.resume_from is not None:
        logger.info("continuing %s at step %d", run.path, start)
    facts = RunFacts(
        recipe,
        backbone_weights,
        folders,
        settings.zero_stage,
        trained_on,
        composing,
        _seconds_before(run),
        arguments.methods,
        found.growth,
    )
    trainer = Trainer(
        engine, shards, order, schedule, checkpoints, facts, lock, stop, arguments.profile, features, growing
    )
    complete = trainer.run(start, arguments.max_steps)
    if complete:
        at_end = arguments.max_steps is None or arguments.max_steps >= schedule.total_steps
        complete = _conclude(arguments, run, shards, growing if at_end else None, world, sizes, stop)
    return complete


@dataclass(frozen=True)
class _Data:
    """What a run draws from."""

    shards: ShardSet
    order: TrainingOrder[SampleRef]
    trained_on: TrainedOn
    growing: GrowingData | None
    """Where the run grows out of another checkpoint."""
    growth: dict[str, Any] | None = None
    """What it was begun with."""


def _conclude(
    arguments: TrainArguments,
    run: RunFolder,
    shards: ShardSet,
    growing: GrowingData | None,
    world: World,
    sizes: tuple[int, int],
    stop: StopRequest | None,
) -> bool:
    """What follows the last step.

    Returns:
        Whether no signal stopped it.

    Raises:
        ValueError: a run that grows forgot more than it may.
    """
    world.on_main(lambda: _keep_normal_maps(arguments, run, shards, world))
    if growing is not None and arguments.growth is not None:
        try:
            review(arguments, arguments.growth, growing, CheckpointFolder(run.path), world, sizes, stop)
        except StoppedError:
            return False
    _say_next(run, world)
    return True


def _keep_normal_maps(arguments: TrainArguments, run: RunFolder, shards: ShardSet, world: World) -> None:
    """Beside the newest checkpoint, for the colours of pictures; a run does not fail at its end for want of them."""
    checkpoint = CheckpointFolder(run.path).newest()
    if checkpoint is None:
        return
    try:
        loaded = load_checkpoint(checkpoint, verify=False, methods=arguments.methods)
        found = measure_normals(loaded, shards, world.device)
        if found is not None:
            save_normal_maps(found, checkpoint)
    except (ValueError, RuntimeError) as error:  # RuntimeError: a GPU whose memory training still holds
        logger.warning("no scale for the colours of pictures is kept with %s: %s", checkpoint, one_line(error))


def _say_next(run: RunFolder, world: World) -> None:
    if world.is_main:
        print(f"next: unimmad evaluate --checkpoint {quote(str(run.path))}")


def _read_settings(arguments: TrainArguments, world: World) -> tuple[TrainArguments, DeepSpeedSettings, int]:
    """What DeepSpeed's JSON says, and the ep_size that fits; checks what this machine must have before it trains."""
    settings = read_deepspeed_config(arguments.deepspeed_config)
    if settings.bf16:
        arguments = replace(arguments, recipe=arguments.recipe.with_precision("bf16"))
    recipe = arguments.recipe
    engine_config(settings, recipe.training, world.size)
    if recipe.training.compile or (recipe.training.evaluate_every and recipe.evaluation.compile):
        check_compiling(world.device)
    if arguments.deterministic:
        _choose_deterministic_kernels()
    logger.info(
        "training in %s, %s", recipe.training.precision, choose_for_training(recipe.training.tf32, world.device)
    )
    if recipe.data.workers:
        expect_workers()
    if arguments.growth is not None:
        check_placement(recipe, arguments.growth, settings.ep_size, world.size)
    return arguments, settings, effective_ep_size(settings.ep_size, world.size, recipe.model)


def _open_data(arguments: TrainArguments, data: list[DataFolder], run: RunFolder, world: World) -> _Data:
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
    return _Data(shards, order, trained_on, growing, growth)


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


def _feature_cache(recipe: Recipe, engine: Engine, shards: ShardSet) -> FeatureCache | None:
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


def _restore(engine: Engine, run: RunFolder) -> int:
    """Fill the optimizer's state where the run continues.

    Returns:
        The steps that are done.
    """
    if run.resume_from is None:
        return 0
    step = int(read_state(run.resume_from)["step"])
    restore_optimizer(engine, run.resume_from, step)
    return step


def _seconds_before(run: RunFolder) -> float:
    """What the run trained before this start."""
    if run.resume_from is None:
        return 0.0
    seconds = read_state(run.resume_from).get(SECONDS)
    return float(seconds) if isinstance(seconds, int | float) else 0.0


def _choose_deterministic_kernels() -> None:
    # cuBLAS reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def _composing(
    arguments: TrainArguments, run: RunFolder, world: World, ep_size: int, classes: dict[str, tuple[SampleRef, ...]]
) -> Composing | None:
    """As the run that is continued has it; a new one on a GPU measures, where its leaders are all on every rank."""
    recipe = arguments.recipe
    if not recipe.model.expert_counts:
        return None
    if run.resume_from is not None:
        checkpoint = run.resume_from
        return world.together(
            lambda: kept_composing(read_state(checkpoint), recipe.model, str(checkpoint / STATE_NAME))
        )
    if world.device.type != "cuda" or arguments.deterministic or ep_size > 1:
        return None
    samples = math.ceil(recipe.training.global_batch / recipe.training.accumulation / world.size)
    modalities = round(statistics.mean(len(refs[0].entry.images) for refs in classes.values()))
    return new_composing(recipe, world, (modalities,) * samples)


def _starting_model(arguments: TrainArguments, run: RunFolder, world: World, data: _Data) -> tuple[Method, str]:
    """The model in its local form, the same on every rank: rank 0's weights go to all when DeepSpeed takes it over."""
    growth, growing = arguments.growth, data.growing
    if growth is not None and growing is not None:
        if run.resume_from is None or arguments.methods[arguments.recipe.method].is_fitted:
            return starting_model(arguments, growth, world, growing, data.order)
        model, origin = world.together(lambda: _stored_model(arguments, run, world))
        freeze_continued(model, arguments, growth, world)
        return model, origin
    method = arguments.recipe.method
    if arguments.init_from is not None and arguments.methods[method].is_fitted:
        raise ValueError(f"--init-from: {method} is fitted to the data, not trained from weights: leave it out")
    if run.resume_from is None and arguments.init_from is None:
        return _from_main_first(arguments, world, lambda: _calibration_images(arguments, data.shards, data.order))
    return world.together(lambda: _stored_model(arguments, run, world))


def _stored_model(arguments: TrainArguments, run: RunFolder, world: World) -> tuple[Method, str]:
    """Of the checkpoint to continue, or of ``--init-from``; the ranks share the verification."""
    source = run.resume_from or find_checkpoint(cast(Path, arguments.init_from))
    extended = None if run.resume_from else arguments.methods[arguments.recipe.method].extends
    check_same_method(source, arguments.recipe, extended)
    model = build_method(arguments.recipe, arguments.methods)
    # A run that continues needs the optimizer's state, too: better to miss it now than after DeepSpeed's set-up.
    without = None if run.resume_from else OPTIMIZER_PREFIX
    if arguments.verify:
        verify_checkpoint(source, without, (world.rank, world.size))
    reader = TensorReader(source, without)
    if run.resume_from is None:  # what it was fitted to are other data
        fill_model(model, reader, own=model.own_tensors)
    else:
        fill_model(with_room_for(reader, read_state(source), model, source), reader)
    if run.resume_from is None:
        logger.info("weights from %s", source)
    elif arguments.init_from is not None:
        logger.info("%s is continued: --init-from %s is not used", run.path, arguments.init_from)
    return model, str(read_state(source).get("backbone_weights", "not said"))


def _calibration_images(
    arguments: TrainArguments, shards: ShardSet, order: TrainingOrder[SampleRef]
) -> Iterator[Tensor]:
    """The images of the run's first steps."""
    recipe, geometry = arguments.recipe, training_geometry(arguments.recipe)
    for step in range(CALIBRATION_STEPS):
        for place, ref in enumerate(order.at(step)):
            draw = ViewDraw(geometry, order.seed, *order.position(step, place))
            try:
                yield shards.read(ref, recipe.model.image_size, with_mask=False, draw=draw).images_MCHW
            except CorruptSampleError:
                if recipe.data.on_error == "stop":
                    raise


def _calibrate(model: Method, images: Iterator[Tensor], recipe: Recipe) -> None:
    """
    Raises:
        ValueError: the images are too small for the backbone's BatchNorm, or can't be read.
    """
    try:
        model.calibrate_backbone(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"model.image_size {recipe.model.image_size} is too small for {recipe.model.backbone}: of an image a "
            "single position is left, of which BatchNorm takes no statistics; use a larger one"
        ) from None


def _from_main_first(
    arguments: TrainArguments, world: World, calibration_images: Callable[[], Iterator[Tensor]]
) -> tuple[Method, str]:
    """Rank 0 fetches the backbone's weights; the others wait, then take its tensors."""
    recipe = arguments.recipe

    def fresh() -> tuple[Method, str]:
        if not world.is_main:
            return build_method(recipe, arguments.methods), ""
        model, origin = new_model(recipe, methods=arguments.methods)
        if origin == RANDOM_WEIGHTS:
            _calibrate(model, calibration_images(), recipe)
            origin += ", BatchNorm calibrated on training samples"
        return model, origin

    model, origin = world.together(fresh)
    if world.size > 1:
        broadcast_model(model, world)
    return model, world.on_main(lambda: origin)
