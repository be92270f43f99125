"""Model and batches of a problem: the same on every rank and in the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from parity.cases import Problem
from torch import Tensor
from torch.overrides import TorchFunctionMode

from unimmad.data.reading.shard_files import SampleRef
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.sample import Batch, collate
from unimmad.data.synthetic import synthetic_sets
from unimmad.data.writing.shards import write_shards
from unimmad.methods.registry import new_model
from unimmad.model.unimmad import UniMMAD

FAVOUR = 20.0
"""Added to a gate's bias: more than any logit differs by."""
_RELU = (torch.relu, torch.relu_, F.relu, F.relu_, Tensor.relu, Tensor.relu_)


def make_shards(folder: Path) -> None:
    sets = synthetic_sets(train_per_class=2, normal_per_class=1, anomalous_per_class=1)
    write_shards(sets, folder, progress=False)


class Batches:
    """Global batches of given modality counts, drawn from the synthetic set in a fixed way."""

    def __init__(self, folder: Path, problem: Problem) -> None:
        self._shards = ShardSet.open([folder])
        self._problem = problem
        self._classes: dict[int, list[tuple[SampleRef, ...]]] = {}
        for refs in self._shards.classes("train").values():
            self._classes.setdefault(len(refs[0].entry.images), []).append(refs)

    def at(self, step: int, part: slice = slice(None)) -> Batch:
        """Samples ``part`` of the micro-batch ``step``; classes of a count come in turn, then their other samples."""
        counts = self._problem.counts
        refs = []
        for position, count in enumerate(counts):
            classes = self._classes[count]
            turn = counts[:position].count(count) + step
            of_class = classes[turn % len(classes)]
            refs.append(of_class[turn // len(classes) % len(of_class)])
        size = self._problem.recipe.model.image_size
        return collate([self._shards.read(ref, size) for ref in refs[part]])


def starting_model(problem: Problem, batches: Batches) -> UniMMAD:
    model, _ = new_model(problem.recipe, seed=0)
    model.calibrate_backbone([batches.at(0).images_TCHW])
    with torch.no_grad():
        for level in model.levels:
            for branch in level.branches:
                branch.routed.gate.linear.bias[list(problem.favoured)] += FAVOUR
    return model


def weights_of_tokens(batch: Batch) -> Tensor:
    """Another loss weight for each number of modalities, as a recipe may give its datasets."""
    return torch.tensor([0.5 * len(sample.slots) for sample in batch.samples for _ in sample.slots])


class Smooth(TorchFunctionMode):
    """Inside, ReLU is softplus and max pooling takes means.

    A unit whose sign, or a window whose largest value, changes by rounding would hide what is looked for.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _RELU:
            return F.softplus(args[0])
        if func is F.max_pool2d:
            given = kwargs or {}
            return F.avg_pool2d(args[0], args[1], given["stride"], given["padding"])
        return func(*args, **(kwargs or {}))
