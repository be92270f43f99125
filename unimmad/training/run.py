"""One training run from arguments to the last checkpoint: gather what it needs, then loop."""

from __future__ import annotations

import logging
import math
import os
import statistics
from dataclasses import replace
from functools import partial
from shlex import quote

import torch

from unimmad.checkpoint.folder import STATE_NAME, CheckpointFolder, read_state
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.normal_maps import NormalMaps, joined_normal_maps, load_normal_maps, save_normal_maps
from unimmad.checkpoint.state import SECONDS
from unimmad.data.reading.shard_files import SampleRef
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.reading.stream import expect_workers
from unimmad.data.synthetic.default_set import ensure_synthetic_shards
from unimmad.evaluation.normal_maps import measure_normals
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
from unimmad.serialization.folder_lock import FolderLock
from unimmad.serialization.text import one_line
from unimmad.training.arguments import TrainArguments
from unimmad.training.checkpointing import RunFacts, restore_optimizer
from unimmad.training.composing import Composing, described, follow_composing, kept_composing, new_composing
from unimmad.training.first_model import first_model
from unimmad.training.fitting import fit
from unimmad.training.growing_run import kept_normal_maps, review
from unimmad.training.grown_model import check_placement
from unimmad.training.growth import GrowingData
from unimmad.training.loop import Trainer
from unimmad.training.opening import open_data, open_feature_cache
from unimmad.training.run_folder import (
    LOCK_NAME,
    RunFolder,
    choose_run_folder,
    claim_run_folder,
)
from unimmad.training.schedule import Schedule
from unimmad.training.stop_request import StopRequest

logger = logging.getLogger(__name__)


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
    found = world.together(lambda: open_data(arguments, data, run, world))
    shards, order, trained_on, growing = found.shards, found.order, found.trained_on, found.growing
    world.ranks.check_same(shards.digest(), "other data")
    run = world.on_main(partial(claim_run_folder, run, arguments, trained_on, lock))
    fitted = run.resume_from if arguments.methods[recipe.method].is_fitted else None
    if fitted is not None and (growing is None or world.on_main(lambda: bool(read_state(fitted).get("finished")))):
        logger.info("%s is fitted already: nothing to do", run.path)
        _say_next(run, world)
        return True
    schedule = Schedule(recipe.training, order.steps_per_epoch // recipe.training.accumulation)
    model, backbone_weights = first_model(arguments, run, world, found)
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
        return _conclude(arguments, run, shards, growing, world, sizes, stop, model)
    composing = _composing(arguments, run, world, ep_size, shards.classes("train"))
    if model.kernel_sizes:
        logger.info("C-MoE %s", described(composing, model.kernel_sizes))
    if composing is not None:
        follow_composing(model, composing)
    engine = build_engine(model, settings, recipe.training, world, ep_size)
    features = world.together(lambda: open_feature_cache(recipe, engine, shards))
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
        growing = growing if at_end else None
        complete = _conclude(arguments, run, shards, growing, world, sizes, stop, engine.model)
    return complete


def _conclude(
    arguments: TrainArguments,
    run: RunFolder,
    shards: ShardSet,
    growing: GrowingData | None,
    world: World,
    sizes: tuple[int, int],
    stop: StopRequest | None,
    model: Method,
) -> bool:
    """What follows the last step.

    Returns:
        Whether no signal stopped it.

    Raises:
        ValueError: a run that grows forgot more than it may.
    """
    world.on_main(lambda: _keep_normal_maps(arguments, run, shards, growing, world, model))
    if growing is not None and arguments.growth is not None:
        try:
            review(arguments, arguments.growth, growing, CheckpointFolder(run.path), world, sizes, stop)
        except StoppedError:
            return False
    _say_next(run, world)
    return True


def _keep_normal_maps(
    arguments: TrainArguments,
    run: RunFolder,
    shards: ShardSet,
    growing: GrowingData | None,
    world: World,
    model: Method,
) -> None:
    """Beside the newest checkpoint, for the colours of pictures; a run does not fail at its end for want of them."""
    checkpoint = CheckpointFolder(run.path).newest()
    if checkpoint is None:
        return
    try:
        loaded = load_checkpoint(checkpoint, verify=False, methods=arguments.methods)
        found = measure_normals(loaded, shards, world.device, model) or load_normal_maps(checkpoint)
        found = joined_normal_maps(found, _of_old_classes(arguments, growing))
        if found is None:
            raise ValueError("of no class can a training image be scored as a new one; unimmad calibrate gives a scale")
        save_normal_maps(found, checkpoint)
    except (ValueError, RuntimeError) as error:  # RuntimeError: a GPU whose memory training still holds
        logger.warning("no scale for the colours of pictures is kept with %s: %s", checkpoint, one_line(error))


def _of_old_classes(arguments: TrainArguments, growing: GrowingData | None) -> NormalMaps | None:
    """What a run that grows takes along of the old checkpoint's scale; none of a file that is damaged."""
    if growing is None or arguments.growth is None:
        return None
    try:
        return kept_normal_maps(arguments, arguments.growth, growing)
    except ValueError as error:
        logger.warning("of old classes no scale for the colours of pictures is kept: %s", one_line(error))
        return None


def _say_next(run: RunFolder, world: World, grown: bool = False) -> None:
    if not world.is_main:
        return
    path = quote(str(run.path))
    print(f"next: unimmad evaluate --checkpoint {path}")
    if grown:
        print(
            f"note: it has no thresholds, those of the old checkpoint don't hold: unimmad calibrate --checkpoint {path}"
        )


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
