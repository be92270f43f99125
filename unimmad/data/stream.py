"""The stream of batches: a webdataset pipeline whose first stage yields what to read, not the data itself.

Reading a pipeline below from top to bottom is reading the data's way: batches are numbered, each worker
keeps its own in turn, a rank keeps its slice, the samples are read and joined. Because workers take whole
batches in turn and the loader asks them in the same turn, batches arrive in order for any number of workers.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from typing import Literal, TypeVar

import torch
from torch.utils.data import DataLoader, get_worker_info
from webdataset import DataPipeline

from unimmad.data.index import Split
from unimmad.data.order import TrainingOrder
from unimmad.data.sample import Batch, Sample, collate
from unimmad.data.shard_set import SampleRef, ShardSet

T = TypeVar("T")

PREFETCHED_BATCHES = 2
"""Batches that each worker reads ahead."""


@dataclass(frozen=True)
class _Failure:
    """Takes the place of the batch that could not be read.

    An exception that leaves a worker would arrive with a traceback in its message.
    """

    message: str


def training_batches(
    shards: ShardSet,
    order: TrainingOrder[SampleRef],
    *,
    image_size: int,
    rank: int,
    world_size: int,
    workers: int,
    start_step: int,
    end_step: int,
) -> Iterator[tuple[int, Batch]]:
    """One rank's part of the training steps ``start_step`` to ``end_step - 1``, in order.

    Rank r takes the r-th of ``world_size`` equal, contiguous parts of each step's batch.

    Args:
        image_size: height and width of the model's images, in pixels.
        workers: processes that read ahead; 0 reads in this one.

    Returns:
        (step, batch) of each step.

    Raises:
        ValueError: at once where the order's batch does not divide among the ranks; while iterating where a
            sample cannot be read.
    """
    part = _part_of_rank(order.batch, rank, world_size)
    pipeline = DataPipeline(
        partial(range, start_step, end_step),
        _split_by_worker,
        partial(_draw, order=order, part=part),
        partial(_read, read=partial(shards.read, image_size=image_size)),
        _errors_as_items,
    )
    return _load(pipeline, workers)


def evaluation_batches(
    shards: ShardSet,
    split: Split,
    *,
    image_size: int,
    batch_size: int,
    workers: int,
    classes: Sequence[str] | None = None,
    mask_resize: Literal["nearest", "bilinear"] = "nearest",
) -> Iterator[Batch]:
    """Every sample of ``split`` once, class by class in index order; no batch mixes two classes.

    Args:
        image_size: height and width of the model's images, in pixels.
        batch_size: samples of a batch, at most.
        workers: processes that read ahead; 0 reads in this one.
        classes: ``DATASET/CLASS`` names to read, in this order; None reads all.
        mask_resize: how masks come to the image size; see ``ShardSet.read``.

    Raises:
        ValueError: at once where ``split`` is empty or lacks a class asked for; while iterating where a
            sample cannot be read.
    """
    if batch_size < 1:
        raise ValueError(f"an evaluation batch of {batch_size} samples is not possible; choose 1 or more")
    chosen = _choose_classes(shards.classes(split), split, classes)
    pipeline = DataPipeline(
        partial(enumerate, list(_batches_of_classes(chosen, batch_size))),
        _split_by_worker,
        partial(_read, read=partial(shards.read, image_size=image_size, mask_resize=mask_resize)),
        _errors_as_items,
    )
    return (batch for _, batch in _load(pipeline, workers))


def _part_of_rank(batch: int, rank: int, world_size: int) -> slice:
    if batch % world_size:
        below = batch - batch % world_size
        sizes = f"{below} and {below + world_size}" if below else f"{world_size}"
        raise ValueError(
            f"a batch of {batch} samples does not divide among {world_size} ranks; "
            f"the nearest sizes that do: {sizes}; change the batch size or the number of ranks"
        )
    share = batch // world_size
    return slice(rank * share, (rank + 1) * share)


def _choose_classes(
    available: dict[str, tuple[SampleRef, ...]], split: Split, wanted: Sequence[str] | None
) -> list[tuple[SampleRef, ...]]:
    if not available:
        raise ValueError(f"the data holds no sample of the split {split!r}; name a shard folder that has some")
    names = list(available) if wanted is None else wanted
    for name in names:
        if name not in available:
            near = difflib.get_close_matches(name, available, n=3) or sorted(available)[:10]
            raise ValueError(f"split {split!r} has no class {name!r}; did you mean {' or '.join(near)}?")
    return [available[name] for name in names]


def _batches_of_classes(classes: Iterable[Sequence[T]], batch_size: int) -> Iterator[Sequence[T]]:
    for samples in classes:
        for first in range(0, len(samples), batch_size):
            yield samples[first : first + batch_size]


def _split_by_worker(numbered: Iterable[T]) -> Iterator[T]:
    """Whole batches in turn. webdataset's own stage would let environment variables overrule the loader."""
    worker = get_worker_info()
    return iter(numbered) if worker is None else islice(numbered, worker.id, None, worker.num_workers)


def _draw(
    steps: Iterable[int], order: TrainingOrder[SampleRef], part: slice
) -> Iterator[tuple[int, Sequence[SampleRef]]]:
    for step in steps:
        yield step, order.at(step)[part]


def _read(
    requests: Iterable[tuple[int, Sequence[SampleRef]]], read: Callable[[SampleRef], Sample]
) -> Iterator[tuple[int, Batch]]:
    for number, refs in requests:
        yield number, collate([read(ref) for ref in refs])


def _errors_as_items(batches: Iterable[tuple[int, Batch]]) -> Iterator[tuple[int, Batch] | _Failure]:
    try:
        yield from batches
    except ValueError as error:
        yield _Failure(str(error))


def _load(pipeline: DataPipeline, workers: int) -> Iterator[tuple[int, Batch]]:
    loader = DataLoader(
        pipeline,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCHED_BATCHES if workers else None,
        multiprocessing_context=_worker_context() if workers else None,
        # A loader draws a seed for its workers; drawn from the global generator, it would change the run.
        generator=torch.Generator(),
    )
    for item in loader:
        if isinstance(item, _Failure):
            raise ValueError(item.message)
        number, batch = item
        yield number, _with_own_masks(batch) if workers else batch


def _worker_context() -> BaseContext:
    """Workers fork from a server process that imports the libraries once.

    Unlike the training process, it has no threads, process group or GPU whose state a fork would break.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _with_own_masks(batch: Batch) -> Batch:
    """Masks outlive their batch, since metrics collect them, and a tensor from a worker holds a file open."""
    samples = tuple(
        sample if sample.mask_HW is None else replace(sample, mask_HW=sample.mask_HW.clone())
        for sample in batch.samples
    )
    return replace(batch, samples=samples)
