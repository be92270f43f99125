"""The model that a training run begins with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from torch import Tensor

from unimmad.checkpoint.digests import verify_checkpoint
from unimmad.checkpoint.folder import find_checkpoint, read_state
from unimmad.checkpoint.loading import OPTIMIZER_PREFIX, fill_model, with_room_for
from unimmad.checkpoint.tensor_slices import TensorReader
from unimmad.config import Recipe
from unimmad.data.reading.order import TrainingOrder
from unimmad.data.reading.shard_files import SampleRef
from unimmad.data.reading.shard_set import CorruptSampleError, ShardSet
from unimmad.data.reading.view_draw import ViewDraw
from unimmad.evaluation.geometry import training_geometry
from unimmad.methods.registry import build_method, new_model
from unimmad.model.backbone import RANDOM_WEIGHTS
from unimmad.model.method import Method
from unimmad.parallel.world import World
from unimmad.training.arguments import TrainArguments
from unimmad.training.growing_run import broadcast_model, freeze_continued, starting_model
from unimmad.training.opening import RunData
from unimmad.training.run_folder import RunFolder, check_same_method

logger = logging.getLogger(__name__)

CALIBRATION_STEPS = 8
"""Steps whose images set the BatchNorm statistics of a backbone without weights."""


def first_model(arguments: TrainArguments, run: RunFolder, world: World, data: RunData) -> tuple[Method, str]:
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
