"""The model that ``unimmad grow`` trains: the old one, with room for new leaders, banks and modality slots."""

from __future__ import annotations

import copy
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch

from unimmad.checkpoint.added_classes import added_files
from unimmad.checkpoint.digests import verify_checkpoint
from unimmad.checkpoint.feedback import has_feedback
from unimmad.checkpoint.loading import OPTIMIZER_PREFIX, LoadedCheckpoint, load_checkpoint, with_room_for
from unimmad.checkpoint.tensor_slices import TensorReader
from unimmad.config import ModelSettings, Recipe
from unimmad.data.reading.order import TrainingOrder
from unimmad.data.reading.shard_files import SampleRef
from unimmad.data.reading.shard_set import CorruptSampleError
from unimmad.data.sample import Sample, collate
from unimmad.methods.registry import METHODS, Registry, build_method
from unimmad.model.cross_moe import CrossMoE
from unimmad.model.growing import GateUse, begin_new_leaders, is_new, take_over, train_experts_alone, watched_gates
from unimmad.model.method import Fitted, FittedMethod, Method
from unimmad.model.unimmad import UniMMAD
from unimmad.parallel.world import World
from unimmad.training.growth import GrowingData, Growth

logger = logging.getLogger(__name__)

LOOKED_AT = 32
"""New images, and as many old ones, that say where new leaders begin."""
BYTES_A_VALUE = 16
"""Of a weight with its gradient and two moments, float32."""


def check_can_grow(recipe: Recipe, growth: Growth, methods: Registry = METHODS) -> None:
    """What is known before anything is read.

    Raises:
        ValueError: the method has no experts and is not fitted either, new leaders don't fit, or are more than memory
            holds.
    """
    if not recipe.model.expert_counts:
        if not methods[recipe.method].is_fitted:
            raise ValueError(
                f"unimmad grow trains gates and leaders alone, and {recipe.method} has none: unimmad add-class gives "
                "it a class by a bank, or train it on all data together"
            )
        if growth.new_leaders:
            raise ValueError(f"--new-leaders: {recipe.method} has no leaders; leave it out")
        return
    _check_leaders(recipe, growth)


def grown_recipe(recipe: Recipe, new_leaders: int, own_bank: bool) -> tuple[Recipe, int]:
    """The recipe with so many leaders more, and the banks that come in.

    Raises:
        ValueError: banks can't share them evenly.
    """
    if not new_leaders or not recipe.model.expert_counts:
        return recipe, 0
    model = recipe.model
    a_bank = model.leaders // model.banks
    unit = a_bank if own_bank else model.banks
    if new_leaders % unit:
        why = f"a bank of their own has {a_bank} leaders" if own_bank else f"{model.banks} banks share them evenly"
        raise ValueError(f"--new-leaders {new_leaders}: {why}; give {unit} or a multiple of it")
    banks = new_leaders // a_bank if own_bank else 0
    changes = {"leaders": model.leaders + new_leaders, "banks": model.banks + banks}
    return recipe.model_copy(update={"model": model.model_copy(update=changes)}), banks


def check_placement(recipe: Recipe, growth: Growth, ep_size: int, world_size: int) -> None:
    """
    Args:
        recipe: the grown one.
        growth: what comes in.
        ep_size: as it is asked for.
        world_size: ranks.

    Raises:
        ValueError: the ranks that would share the old leaders can't have as many of the new ones each.
    """
    if not growth.new_leaders:
        return
    model = recipe.model
    less = {"leaders": model.leaders - growth.new_leaders, "banks": model.banks - growth.new_banks}
    old, grown = (math.gcd(ep_size, world_size, *of.expert_counts) for of in (model.model_copy(update=less), model))
    if grown != old:
        raise ValueError(
            f"--new-leaders {growth.new_leaders} can't be placed evenly on the {old} ranks of an expert-parallel "
            f"group ({grown} could share all leaders and banks): give another number, or another ep_size"
        )


def load_source(growth: Growth, verify: bool, world: World, methods: Registry) -> LoadedCheckpoint:
    """The checkpoint that grows, without what was added to its banks later; the ranks share its verification."""
    if world.is_main and (added_files(growth.source) or has_feedback(growth.source)):
        logger.warning(
            "%s has classes that add-class added, or feedback: they are not taken along; add the classes, calibrate "
            "and give the feedback again",
            growth.source,
        )
    if verify:
        verify_checkpoint(growth.source, OPTIMIZER_PREFIX, (world.rank, world.size))
    return load_checkpoint(growth.source, verify=False, methods=methods)


def grown_model(
    source: LoadedCheckpoint, recipe: Recipe, growth: Growth, data: GrowingData, methods: Registry
) -> Method:
    """With the old weights; new leaders are still at random.

    Raises:
        ValueError: the checkpoint does not fit its recipe, or banks can't come to its own.
    """
    model = _with_room(source, recipe, growth, data, methods)
    if isinstance(model, Fitted):
        if not model.is_fitted:
            raise ValueError(f"{growth.source} has no banks yet: let its training come to its end first")
        model.begin(recipe.training.seed, adding=True)  # now rather than after training: it may refuse
        model.forget(data.new)
    return model


def _with_room(
    source: LoadedCheckpoint, recipe: Recipe, growth: Growth, data: GrowingData, methods: Registry
) -> Method:
    if recipe.model == source.recipe.model:
        return copy.deepcopy(source.model)
    reader = TensorReader(growth.source, without=OPTIMIZER_PREFIX)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.training.seed)
        model = with_room_for(reader, source.state, build_method(recipe, methods), growth.source)
    assert isinstance(model, UniMMAD)
    assert isinstance(source.model, UniMMAD)
    take_over(model, source.model, _kinds(data, recipe.model.modality_slots))
    return model


def begin_leaders(
    model: Method,
    source: LoadedCheckpoint,
    data: GrowingData,
    order: TrainingOrder[SampleRef],
    recipe: Recipe,
) -> None:
    """Let new leaders begin with those that the first new images of the order are routed to."""
    assert isinstance(model, UniMMAD)
    assert isinstance(source.model, UniMMAD)
    classes = data.shards.classes("train")
    drawn = [ref for step in range(LOOKED_AT) for ref in order.at(step)]
    of_new = [ref for ref in drawn if ref.class_name in data.new][:LOOKED_AT]
    of_old = [ref for ref in drawn if ref.class_name not in data.new][:LOOKED_AT]
    logger.info(
        "new leaders begin with those of %d new and %d old images of %d classes", len(of_new), len(of_old), len(classes)
    )
    # The old levels see as they will: new slots are in the images of new classes alone.
    source.model.input_embedding = model.input_embedding
    for_new, for_old = (_use(source.model, _read(refs, data, recipe), recipe) for refs in (of_new, of_old))
    if for_new is None:
        raise ValueError("none of the new images that new leaders begin with can be read")
    begin_new_leaders(model, source.model, for_new, for_old, recipe.training.seed)


def freeze_all_but_experts(model: Method, source: LoadedCheckpoint | None, growth: Growth, world: World) -> None:
    """See ``train_experts_alone``; and where ``source`` is given, let training distil from it."""
    if isinstance(model, FittedMethod):
        return
    assert isinstance(model, UniMMAD)
    banks, leaders = model.settings.banks, model.settings.leaders
    new_banks = [number for number, new in enumerate(is_new(banks - growth.new_banks, growth.new_banks)) if new]
    train_experts_alone(model, new_banks)
    if source is not None and growth.distillation:
        assert isinstance(source.model, UniMMAD)
        levels = [copy.deepcopy(level).to(world.device).eval().requires_grad_(False) for level in source.model.levels]
        unit = leaders // banks if growth.new_banks else 1
        model.before = cast(list[CrossMoE], levels)
        model.distillation = growth.distillation
        new = is_new(leaders - growth.new_leaders, growth.new_leaders, unit)
        model.old_leaders = tuple(place for place, is_one in enumerate(new) if not is_one)


def _check_leaders(recipe: Recipe, growth: Growth) -> None:
    model: ModelSettings = recipe.model
    branches = model.level_count * len(model.kernel_sizes)
    a_leader = (model.base_experts + 1) * model.embed_dim + 1
    banks = sum(size**2 for size in model.kernel_sizes) * model.level_count * model.base_experts * model.embed_dim**2
    needed = BYTES_A_VALUE * (branches * a_leader * growth.new_leaders + banks * growth.new_banks)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > memory:
        raise ValueError(
            f"--new-leaders {growth.new_leaders} would take {needed / 1e9:.0f} GB in training, and this machine has "
            f"{memory / 1e9:.0f} GB: give fewer"
        )


def _kinds(data: GrowingData, slots: int) -> list[str]:
    """Of each slot, where a dataset says it."""
    kinds = [""] * slots
    for entry in (*data.trained_on.datasets.values(), *data.shards.datasets.values()):
        for modality in entry.modalities:
            kinds[modality.slot] = kinds[modality.slot] or modality.kind
    return kinds


def _read(refs: Iterable[SampleRef], data: GrowingData, recipe: Recipe) -> Iterator[Sample]:
    for ref in refs:
        try:
            yield data.shards.read(ref, recipe.model.image_size, with_mask=False, aspect=recipe.data.aspect)
        except CorruptSampleError:
            if recipe.data.on_error == "stop":
                raise


@torch.inference_mode()
def _use(model: UniMMAD, samples: Iterator[Sample], recipe: Recipe) -> Sequence[GateUse] | None:
    """None where there is no sample."""
    model.eval()
    found = list(samples)
    size = recipe.evaluation.batch_size
    with watched_gates(model) as used:
        for start in range(0, len(found), size):
            batch = collate(found[start : start + size])
            UniMMAD.forward(model, batch.images_TCHW, batch.tokens_per_sample, batch.slot_of_token_T)
        return used() if found else None
