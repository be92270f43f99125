"""The parts of a run that ``unimmad grow`` adds: the model that it begins with, and the review at its end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from unimmad.checkpoint.folder import STATE_NAME, CheckpointFolder, read_state
from unimmad.checkpoint.loading import LoadedCheckpoint, load_checkpoint
from unimmad.checkpoint.normal_maps import NormalMaps, load_normal_maps
from unimmad.checkpoint.state import SECONDS
from unimmad.checkpoint.writing import mark_finished
from unimmad.config import as_it_was_meant, parse_recipe
from unimmad.data.reading.order import TrainingOrder
from unimmad.data.reading.shard_files import SampleRef
from unimmad.methods.registry import settings_of
from unimmad.metrics.metrics import Metrics
from unimmad.model.method import Fitted, FittedMethod, Method
from unimmad.parallel.world import World
from unimmad.ranks.exchange import Ranks
from unimmad.training.arguments import TrainArguments
from unimmad.training.forgetting import Forgetting, class_metrics
from unimmad.training.grown_model import begin_leaders, freeze_all_but_experts, grown_model, load_source
from unimmad.training.growth import GrowingData, Growth
from unimmad.training.stop_request import StopRequest

NOT_OF_SCORES = {
    *("batch_size", "mask_resize", "resolution", "pictures_per_class", "leader_cache_mib", "channels_last", "compile"),
}
"""Settings of an evaluation that change no image's score."""


def kept_normal_maps(arguments: TrainArguments, growth: Growth, data: GrowingData) -> NormalMaps | None:
    """What the old checkpoint has, of classes that stay as they are; None where images are scored in another way now.

    Raises:
        ValueError: its file is damaged.
    """
    state, ours = read_state(growth.source), arguments.recipe
    where = f"{growth.source / STATE_NAME}: recipe"
    theirs = parse_recipe(as_it_was_meant(state["recipe"]), where, settings_of(arguments.methods))
    scoring = [recipe.evaluation.model_dump(exclude=NOT_OF_SCORES) for recipe in (theirs, ours)]
    if scoring[0] != scoring[1] or theirs.data.aspect != ours.data.aspect:
        return None
    old = load_normal_maps(growth.source)
    return old and old.model_copy(update={"sets": [one for one in old.sets if one.class_name not in data.new]})


def starting_model(
    arguments: TrainArguments, growth: Growth, world: World, data: GrowingData, order: TrainingOrder[SampleRef]
) -> tuple[Method, str]:
    """The old model with room for what comes in, the same on every rank; and what its backbone was loaded with.
    Collective.

    Raises:
        ValueError: the checkpoint is damaged or of another form, or samples can't be read.
    """

    def loaded() -> tuple[LoadedCheckpoint, Method]:
        source = load_source(growth, arguments.verify, world, arguments.methods)
        model = grown_model(source, arguments.recipe, growth, data, arguments.methods)
        if growth.new_leaders and world.is_main:
            begin_leaders(model, source, data, order, arguments.recipe)
        return source, model

    source, model = world.together(loaded)
    if growth.new_leaders and world.size > 1:
        broadcast_model(model, world)
    freeze_all_but_experts(model, source, growth, world)
    return model, source.backbone_weights


def freeze_continued(model: Method, arguments: TrainArguments, growth: Growth, world: World) -> None:
    """The same of a model that came from the run's own checkpoint; collective."""
    distils = growth.distillation and not isinstance(model, FittedMethod)
    source = (
        world.together(lambda: load_source(growth, arguments.verify, world, arguments.methods)) if distils else None
    )
    freeze_all_but_experts(model, source, growth, world)


def broadcast_model(model: Method, world: World) -> None:
    """Rank 0's tensors to all; collective."""
    for tensor in model.state_dict().values():
        on_device = tensor.to(world.device)
        torch.distributed.broadcast(on_device, src=0)
        tensor.copy_(on_device)


def review(
    arguments: TrainArguments,
    growth: Growth,
    data: GrowingData,
    folder: CheckpointFolder,
    world: World,
    sizes: tuple[int, int],
    stop: StopRequest | None,
) -> None:
    """Measure old and new checkpoint, write the report of what was forgotten, and finish the new one where that may be.
    Of one that is finished already nothing is done. Collective.

    Args:
        arguments: the run's.
        growth: its own.
        data: test images of old and new classes.
        folder: of the run, whose newest checkpoint is the one.
        world: all ranks.
        sizes: values that were trained, and all.
        stop: ends the measurement.

    Raises:
        ValueError: an old class lost more than it may; on every rank.
        StoppedError: a signal came.
    """
    ranks = replace(world.ranks, should_stop=lambda: stop is not None and stop.first != 0)
    checkpoint = world.on_main(folder.newest)
    assert checkpoint is not None, "the last step has one"
    if world.on_main(lambda: bool(read_state(checkpoint).get("finished"))):
        return
    before = _measured(growth.source, data, arguments, world, ranks)
    after = _measured(checkpoint, data, arguments, world, ranks)

    def conclude() -> None:
        classes = data.shards.classes("train")
        found = Forgetting(
            before,
            after,
            data.new,
            data.trained_on.classes,
            *sizes,
            float(read_state(checkpoint).get(SECONDS, 0.0)) / 60,
            sum(len(refs) for name, refs in classes.items() if name not in data.new),
        )
        text, _ = found.write(folder.run)
        print(found.table().to_text(), end="", flush=True)
        print(f"forgetting {text}", flush=True)
        found.check(growth.max_forgetting, has_new_leaders=bool(growth.new_leaders))
        mark_finished(folder, checkpoint, arguments.recipe.training.keep_checkpoints)

    world.on_main(conclude)


def _measured(
    checkpoint: Path, data: GrowingData, arguments: TrainArguments, world: World, ranks: Ranks
) -> dict[str, Metrics]:
    """The metrics of each class of the test split that the checkpoint can score, on rank 0; by the run's recipe,
    whatever its own says. Collective."""
    loaded = world.together(lambda: load_checkpoint(checkpoint, verify=False, methods=arguments.methods))
    model, shards = loaded.model, data.shards
    lacks_bank = isinstance(model, Fitted) and model.looks_at_class and not all(map(model.is_fitted_to, data.new))
    if lacks_bank or shards.max_slot >= model.modality_slots:
        shards = shards.those(lambda ref: ref.class_name in data.old)
    return class_metrics(model, arguments.recipe, shards, world.device, ranks)
