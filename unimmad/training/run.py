"""One training run from arguments to the last checkpoint: gather what it needs, then loop."""

from __future__ import annotations

import logging
import math
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from unimmad.assembly import empty_model, new_model
from unimmad.checkpoint.folder import STATE_NAME, CheckpointFolder, find_checkpoint, read_state
from unimmad.checkpoint.loading import OPTIMIZER_PREFIX, fill_model
from unimmad.checkpoint.pieces import PieceReader
from unimmad.checkpoint.trained_on import TrainedOn
from unimmad.config import Recipe, check_dataset_weights
from unimmad.data.default_set import ensure_synthetic_shards
from unimmad.data.location import DataFolder
from unimmad.data.order import TrainingOrder
from unimmad.data.resized_cache import GB, ResizedCache, expected_bytes
from unimmad.data.shard_cache import ShardCache
from unimmad.data.shard_set import CorruptSampleError, SampleRef, ShardSet
from unimmad.data.stream import expect_workers
from unimmad.model.backbone import RANDOM_WEIGHTS, calibrate_batchnorm
from unimmad.model.execution import check_compiling
from unimmad.model.tf32 import choose_for_training
from unimmad.model.unimmad import UniMMAD
from unimmad.parallel.deepspeed_config import read_deepspeed_config
from unimmad.parallel.engine import build_engine
from unimmad.parallel.placement import effective_ep_size
from unimmad.parallel.world import World
from unimmad.training.arguments import TrainArguments
from unimmad.training.checkpointing import RunFacts, restore_optimizer
from unimmad.training.composing import Composing, described, follow_composing, kept_composing, new_composing
from unimmad.training.loop import RankError, Trainer
from unimmad.training.run_folder import RunFolder, check_same_data, choose_run_folder, make_run_folder
from unimmad.training.schedule import Schedule

logger = logging.getLogger(__name__)

CALIBRATION_STEPS = 8
"""Steps whose images set the BatchNorm statistics of a backbone without weights."""


def train(arguments: TrainArguments, world: World, should_stop: Callable[[], bool] | None = None) -> bool:
    """Train to the end, or until ``should_stop`` holds on some rank; then all save at the end of their step.

    Returns:
        Whether the end was reached.

    Raises:
        ValueError: something the user gave is wrong; every rank raises it.
    """
    settings = read_deepspeed_config(arguments.deepspeed_config)
    if settings.bf16:
        arguments = replace(arguments, recipe=arguments.recipe.with_precision("bf16"))
    recipe = arguments.recipe
    if arguments.deterministic:
        _choose_deterministic_kernels()
    logger.info(
        "training in %s, %s", recipe.training.precision, choose_for_training(recipe.training.tf32, world.device)
    )
    if recipe.data.workers:
        expect_workers()
    _check_compiling(recipe, world)
    ep_size = effective_ep_size(settings.ep_size, world.size, recipe.model)
    run = _choose_run_folder(arguments, world)
    data = _data_folders(arguments, world)
    shards = ShardSet.open(data, ShardCache.of(recipe.data.cache_folder, recipe.data.cache_gb))
    classes = shards.classes("train")
    trained_on = TrainedOn.of(shards.datasets, {name: [ref.entry for ref in refs] for name, refs in classes.items()})
    check_dataset_weights(recipe.data.dataset_weights, shards.datasets)
    if run.resume_from is not None:
        check_same_data(run.resume_from, trained_on)
    if recipe.training.evaluate_every and not shards.has("test"):
        raise ValueError(
            f"training.evaluate_every is {recipe.training.evaluate_every}, but the data have no test sample; "
            "use --set training.evaluate_every=0, or --data with some"
        )
    if recipe.data.resized_cache_gb:
        shards.resized = _resized_cache(recipe, shards, world)
    if shards.max_slot >= recipe.model.modality_slots:
        raise ValueError(
            f"the data use {shards.max_slot + 1} modality slots and the recipe's model has "
            f"{recipe.model.modality_slots}; use --set model.modality_slots={shards.max_slot + 1}"
        )
    _make_run_folder(run.path, world)
    order = TrainingOrder(
        classes,
        lambda ref: (ref.folder, ref.entry.shard),
        recipe.training.seed,
        recipe.training.global_batch // recipe.training.accumulation,
        recipe.training.accumulation,
        recipe.data.sampling,
    )
    schedule = Schedule(recipe.training, order.steps_per_epoch // recipe.training.accumulation)
    model, backbone_weights = _starting_model(
        arguments, run, world, lambda: _calibration_images(arguments, shards, order)
    )
    logger.info("backbone %s, weights: %s", recipe.model.backbone, backbone_weights)
    composing = _composing(arguments, run, world, ep_size, classes)
    logger.info("C-MoE %s", described(composing, recipe.model.kernel_sizes))
    if composing is not None:
        follow_composing(model, composing)
    engine = build_engine(model, settings, recipe.training, world, ep_size)
    start = 0
    if run.resume_from is not None:
        start = int(read_state(run.resume_from)["step"])
        restore_optimizer(engine, run.resume_from, start)
        logger.info("continuing %s at step %d", run.path, start)
    facts = RunFacts(
        recipe, backbone_weights, [str(folder) for folder in data], settings.zero_stage, trained_on, composing
    )
    trainer = Trainer(
        engine, shards, order, schedule, CheckpointFolder(run.path), facts, should_stop, arguments.profile
    )
    return trainer.run(start, arguments.max_steps)


def _check_compiling(recipe: Recipe, world: World) -> None:
    """Now, not when the first step or the first evaluation comes; nodes may differ in what they have."""
    if not recipe.training.compile and not (recipe.training.evaluate_every and recipe.evaluation.compile):
        return
    problem = ""
    try:
        check_compiling(world.device)
    except ValueError as error:
        problem = str(error)
    if world.agreed(not problem):
        return
    if problem and world.local_rank == 0 and not world.is_main:
        raise RankError(f"rank {world.rank}: {problem}")
    raise ValueError(problem or "torch.compile can't be used on another node, whose own message says why")


def _resized_cache(recipe: Recipe, shards: ShardSet, world: World) -> ResizedCache:
    """Room in it is made once a node, before any rank takes some."""
    cache = ResizedCache(shards.cache.folder, recipe.model.image_size, int(recipe.data.resized_cache_gb * GB))
    if world.local_rank == 0:
        try:
            kept = cache.make_room(expected_bytes(shards.indexes, cache.image_size))
        except ValueError as error:
            # A node's own disk: no other rank can say it.
            raise RankError(f"rank {world.rank}: {error}") from None
        logger.info("resized images in %s: %.2f of %.2f GB", cache.folder, kept / GB, recipe.data.resized_cache_gb)
    world.barrier()
    return cache


def _choose_deterministic_kernels() -> None:
    # cuBLAS reads it when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def _composing(
    arguments: TrainArguments, run: RunFolder, world: World, ep_size: int, classes: dict[str, tuple[SampleRef, ...]]
) -> Composing | None:
    """As the run that is continued has it; a new one on a GPU measures, where its leaders are all on every rank."""
    recipe = arguments.recipe
    if run.resume_from is not None:
        return kept_composing(read_state(run.resume_from), recipe.model, str(run.resume_from / STATE_NAME))
    if world.device.type != "cuda" or arguments.deterministic or ep_size > 1:
        return None
    samples = math.ceil(recipe.training.global_batch / recipe.training.accumulation / world.size)
    modalities = round(statistics.mean(len(refs[0].entry.images) for refs in classes.values()))
    return new_composing(recipe, world, (modalities,) * samples)


def _choose_run_folder(arguments: TrainArguments, world: World) -> RunFolder:
    """Rank 0 looks, so that no rank sees the folder at another moment."""
    answer = ""
    if world.is_main:
        try:
            run = choose_run_folder(arguments.output_dir, arguments.resume, arguments.recipe)
            answer = f"{run.path}\n{run.resume_from or ''}"
        except ValueError as error:
            answer = f"\n{error}"
    path, _, rest = world.from_main(answer).partition("\n")
    if not path:
        raise ValueError(rest)
    return RunFolder(Path(path), Path(rest) if rest else None)


def _make_run_folder(folder: Path, world: World) -> None:
    problem = ""
    if world.is_main:
        try:
            make_run_folder(folder)
        except ValueError as error:
            problem = str(error)
    problem = world.from_main(problem)
    if problem:
        raise ValueError(problem)


def _data_folders(arguments: TrainArguments, world: World) -> list[DataFolder]:
    if arguments.data:
        return list(arguments.data)
    folder = ""
    if world.is_main:
        folder = str(ensure_synthetic_shards())
    return [Path(world.from_main(folder))]


def _starting_model(
    arguments: TrainArguments, run: RunFolder, world: World, calibration_images: Callable[[], Iterator[Tensor]]
) -> tuple[UniMMAD, str]:
    """The model in its local form, the same on every rank: rank 0's weights go to all when DeepSpeed takes it over."""
    source = run.resume_from or (find_checkpoint(arguments.init_from) if arguments.init_from else None)
    if source is not None:
        model = empty_model(arguments.recipe.model)
        # A run that continues needs the optimizer's state, too: better to miss it now than after DeepSpeed's set-up.
        fill_model(model, PieceReader(source, without=None if run.resume_from else OPTIMIZER_PREFIX))
        if run.resume_from is None:
            logger.info("weights from %s", source)
        elif arguments.init_from is not None:
            logger.info("%s is continued: --init-from %s is not used", run.path, arguments.init_from)
        return model, str(read_state(source)["backbone_weights"])
    return _from_main_first(arguments, world, calibration_images)


def _calibration_images(
    arguments: TrainArguments, shards: ShardSet, order: TrainingOrder[SampleRef]
) -> Iterator[Tensor]:
    """The images of the run's first steps."""
    for step in range(CALIBRATION_STEPS):
        for ref in order.at(step):
            try:
                yield shards.read(ref, arguments.recipe.model.image_size).images_MCHW
            except CorruptSampleError:
                if arguments.recipe.data.on_error == "stop":
                    raise


def _from_main_first(
    arguments: TrainArguments, world: World, calibration_images: Callable[[], Iterator[Tensor]]
) -> tuple[UniMMAD, str]:
    """Rank 0 fetches the backbone's weights; the others wait, then take its tensors."""
    settings = arguments.recipe.model
    origin, problem = "", ""
    model: UniMMAD | None = None
    if world.is_main:
        try:
            model, origin = new_model(settings, arguments.recipe.training.seed)
            if origin == RANDOM_WEIGHTS:
                calibrate_batchnorm(model.teacher, calibration_images())
                model.copy_teacher_into_encoder()
                origin += ", BatchNorm calibrated on training samples"
        except ValueError as error:
            problem = str(error)
    problem = world.from_main(problem)
    if problem:
        raise ValueError(problem)
    if model is None:
        model, _ = new_model(settings.model_copy(update={"backbone_weights": "none"}), arguments.recipe.training.seed)
    if world.size > 1:
        for tensor in model.state_dict().values():
            on_device = tensor.to(world.device)
            torch.distributed.broadcast(on_device, src=0)
            tensor.copy_(on_device)
    return model, world.from_main(origin)
