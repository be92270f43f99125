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
from itertools import chain, islice, repeat, zip_longest
from typing import TypeVar

import torch
from torch.utils.data import get_worker_info

from unimmad.data.index import Split
from unimmad.data.mask_resize import MaskRule
from unimmad.data.reading.anomaly_draw import AnomalyDraw
from unimmad.data.reading.modality_dropout import ModalityDropout
from unimmad.data.reading.order import TrainingOrder
from unimmad.data.reading.parcel import WAY_OUT
from unimmad.data.reading.shard_files import SampleRef
from unimmad.data.reading.shard_set import CorruptSampleError, ShardSet
from unimmad.data.reading.skipping import OnError, SkipLog, Skipped
from unimmad.data.reading.view_draw import ViewDraw
from unimmad.data.reading.worker_pool import Pipeline, errors_as_items, load, start_worker_server
from unimmad.data.sample import Batch, BatchBuffer, Sample, collate
from unimmad.data.views import STRETCHED, Geometry, Resolution

T = TypeVar("T")

TILED_IMAGES_TOGETHER = 2
"""Stored images that are handed over at once: their views share the model's batches."""


@dataclass(frozen=True)
class _Request:
    """One batch to read. Each place has the sample that belongs there, and those that may stand there instead."""

    number: int
    places: Sequence[tuple[SampleRef, Iterable[SampleRef]]]
    views: Sequence[ViewDraw | None]
    """Of each place; None: the whole image."""
    positions: Sequence[tuple[int, int]] = ()
    """Epoch and position of each place, in training."""


@dataclass(frozen=True)
class _Answer:
    number: int
    batch: Batch | None
    """None where no place could be filled."""
    skipped: tuple[Skipped, ...]
    left_out: int
    """Places that no sample could fill."""

    @property
    def places(self) -> int:
        return self.left_out + (0 if self.batch is None else self.batch.size)

    def pin_memory(self) -> _Answer:
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


def expect_workers() -> None:
    """Call early where batches will be read with workers: these then start at once."""
    start_worker_server(preload=__name__)


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
    on_error: OnError = "stop",
    skip_log: SkipLog | None = None,
    modality_dropout: float = 0.0,
    drawn_share: float = 0.0,
    geometry: Geometry = STRETCHED,
) -> Iterator[tuple[int, Batch]]:
    """One rank's part of the training steps ``start_step`` to ``end_step - 1``, in order.

    Rank r takes the r-th of ``world_size`` equal, contiguous parts of each step's batch.

    Args:
        image_size: height and width of the model's images, in pixels.
        workers: processes that read ahead; 0 reads in this one.
        on_error: ``skip`` puts another sample in the place of a corrupt one: the order's own choice for that
            position, so batches keep their size and the draw stays the same on any number of ranks.
        skip_log: counts what was skipped; None: a new one, which logs only.
        modality_dropout: probability that a modality of a sample is left out; see ``ModalityDropout``.
        drawn_share: share of samples of which ``Batch.drawn_TCHW`` has anomalies; 0: there is no such tensor.
        geometry: by which views images are looked at; of several one is drawn (``ViewDraw``).

    Returns:
        (step, batch) of each step, page-locked where there is a GPU; without masks, which training has no use for.

    Raises:
        ValueError: at once where the order's batch does not divide among the ranks; while iterating where a
            sample cannot be read (corrupt: unless skipped), nor any in its place.
    """
    part = _part_of_rank(order.batch, rank, world_size)
    pipeline = Pipeline(
        partial(range, start_step, end_step),
        _split_by_worker,
        partial(
            _draw, order=order, part=part, dropout=ModalityDropout(order.seed, modality_dropout), geometry=geometry
        ),
        partial(
            _read,
            read=partial(shards.read, image_size=image_size, with_mask=False, aspect=geometry.aspect),
            image_size=image_size,
            on_error=on_error,
            anomalies=AnomalyDraw(order.seed, drawn_share) if drawn_share else None,
        ),
        errors_as_items,
    )
    answers = _answers(
        pipeline,
        ((step, part.stop - part.start) for step in range(start_step, end_step)),
        workers,
        skip_log or SkipLog("another sample takes its place"),
        pin_memory=True,
    )
    return _whole(answers)


def evaluation_rounds(
    shards: ShardSet,
    split: Split,
    *,
    rank: int = 0,
    world_size: int = 1,
    image_size: int,
    batch_size: int,
    workers: int,
    classes: Sequence[str] | None = None,
    mask_resize: MaskRule = "nearest",
    on_error: OnError = "stop",
    skip_log: SkipLog | None = None,
    geometry: Geometry = STRETCHED,
    resolution: Resolution = "model",
) -> Iterator[Batch | None]:
    """Every sample of ``split`` once, class by class in index order; no batch mixes two classes.

    Of each round's ``world_size`` batches this rank gets the one of its number. All ranks have as many rounds. A batch
    is the same whatever the number of ranks.

    Args:
        image_size: height and width of the model's images, in pixels.
        batch_size: samples of a batch, at most.
        workers: processes that read ahead, no more than there are batches; 0 reads in this one.
        classes: ``DATASET/CLASS`` names to read, in this order; None reads all.
        mask_resize: how masks come to the image size; see ``ShardSet.read``.
        on_error: ``skip`` leaves corrupt samples out.
        skip_log: counts what was left out; None: a new one, which logs only.
        geometry: by which views images are looked at. With tiles, samples come with their ``stored`` images, for views
            to be cut from, and batches have ``images_together`` of them at most.
        resolution: of the masks.

    Returns:
        One batch a round; None where the last round has none for this rank, or all of its samples were left out.

    Raises:
        ValueError: at once where ``split`` is empty or lacks a class asked for; while iterating where a
            sample cannot be read.
    """
    if batch_size < 1:
        raise ValueError(f"an evaluation batch of {batch_size} samples is not possible; choose 1 or more")
    chosen = _choose_classes(shards.classes(split), split, classes)
    numbered = list(enumerate(_batches_of_classes(chosen, images_together(batch_size, geometry))))
    own = numbered[rank::world_size]
    pipeline = Pipeline(
        partial(iter, own),
        _split_by_worker,
        _without_substitutes,
        partial(
            _read,
            read=partial(
                shards.read,
                image_size=image_size,
                mask_resize=mask_resize,
                aspect=geometry.aspect,
                resolution=resolution,
            )
            if geometry.tiles is None
            else partial(_read_stored, shards, image_size, mask_resize, resolution),
            image_size=image_size,
            on_error=on_error,
        ),
        errors_as_items,
    )
    due = ((number, len(refs)) for number, refs in own)
    answers = _answers(pipeline, due, min(workers, len(own)), skip_log or SkipLog("it is left out"))
    rounds = -(-len(numbered) // world_size)
    return chain((batch for _, batch in answers), repeat(None, rounds - len(own)))


def images_together(batch_size: int, geometry: Geometry) -> int:
    """Samples of an evaluation batch, at most: fewer where each of them is a large image with many views."""
    return batch_size if geometry.tiles is None else min(batch_size, TILED_IMAGES_TOGETHER)


def _read_stored(
    shards: ShardSet,
    image_size: int,
    mask_resize: MaskRule,
    resolution: Resolution,
    ref: SampleRef,
    buffer: BatchBuffer,
) -> Sample:
    """With its images as they are stored, and the mask at the model's size or its own; ``buffer`` is for views."""

    def frame(stored: tuple[int, int]) -> tuple[int, int]:
        return stored if resolution == "original" else (image_size, image_size)

    return shards.read_stored(ref, frame, mask_resize)


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
    steps: Iterable[int],
    order: TrainingOrder[SampleRef],
    part: slice,
    dropout: ModalityDropout,
    geometry: Geometry,
) -> Iterator[_Request]:
    for step in steps:
        drawn = list(islice(enumerate(order.at(step)), part.start, part.stop))
        yield _Request(
            step,
            [_place(ref, step, place, order, dropout) for place, ref in drawn],
            [
                None if geometry.tiles is None else ViewDraw(geometry, order.seed, *order.position(step, place))
                for place, _ in drawn
            ],
            [order.position(step, place) for place, _ in drawn],
        )


def _place(
    ref: SampleRef, step: int, place: int, order: TrainingOrder[SampleRef], dropout: ModalityDropout
) -> tuple[SampleRef, Iterable[SampleRef]]:
    others = order.substitutes(step, place)
    if not dropout.probability:
        return ref, others
    epoch, position = order.position(step, place)
    return dropout.drop_modalities(ref, epoch, position), (
        dropout.drop_modalities(other, epoch, position) for other in others
    )


def _without_substitutes(numbered: Iterable[tuple[int, Sequence[SampleRef]]]) -> Iterator[_Request]:
    for number, refs in numbered:
        yield _Request(number, [(ref, ()) for ref in refs], [None] * len(refs))


def _read(
    requests: Iterable[_Request],
    read: Callable[..., Sample],
    image_size: int,
    on_error: OnError,
    anomalies: AnomalyDraw | None = None,
) -> Iterator[_Answer]:
    for request in requests:
        skipped: list[Skipped] = []
        buffer = BatchBuffer(sum(len(ref.entry.images) for ref, _ in request.places), image_size)
        found = (
            _first_readable(chain([ref], others), _reader(read, buffer, view), on_error, skipped)
            for (ref, others), view in zip(request.places, request.views, strict=True)
        )
        samples = [sample for sample in found if sample is not None]
        batch = collate(samples) if samples else None
        if batch is not None and anomalies is not None:
            batch = _with_anomalies(batch, anomalies, request.positions)
        yield _Answer(request.number, batch, tuple(skipped), len(request.places) - len(samples))


def _with_anomalies(batch: Batch, anomalies: AnomalyDraw, positions: Sequence[tuple[int, int]]) -> Batch:
    of_samples = zip(batch.images_TCHW.split(batch.tokens_per_sample), positions, strict=True)
    return replace(batch, drawn_TCHW=torch.cat([anomalies.drawn(images, *position) for images, position in of_samples]))


def _reader(read: Callable[..., Sample], buffer: BatchBuffer, view: ViewDraw | None) -> Callable[[SampleRef], Sample]:
    return partial(read, buffer=buffer) if view is None else partial(read, buffer=buffer, draw=view)


def _first_readable(
    refs: Iterable[SampleRef], read: Callable[[SampleRef], Sample], on_error: OnError, skipped: list[Skipped]
) -> Sample | None:
    for ref in refs:
        try:
            return read(ref)
        except CorruptSampleError as error:
            if on_error == "stop":
                raise
            skipped.append(Skipped(error.shard, str(error)))
    return None


def _answers(
    pipeline: Pipeline,
    due: Iterable[tuple[int, int]],
    workers: int,
    skip_log: SkipLog,
    pin_memory: bool = False,
) -> Iterator[tuple[int, Batch | None]]:
    """Each batch with its number; None where none of its places could be filled.

    Args:
        due: number and places of each batch that must come, in order.

    Raises:
        ValueError: a batch that is due did not come, or another one did.
    """
    answers = load(pipeline, workers, preload=__name__, pin_memory=pin_memory)
    for expected, answer in zip_longest(due, answers):
        if answer is None or expected != (answer.number, answer.places):
            raise ValueError(_not_as_due(expected, answer))
        skip_log.add(answer.skipped)
        yield answer.number, answer.batch if answer.batch is None or not workers else _with_own_masks(answer.batch)


def _not_as_due(expected: tuple[int, int] | None, answer: _Answer | None) -> str:
    wanted = "no more batch" if expected is None else f"batch {expected[0]} of {expected[1]} samples"
    found = "none came" if answer is None else f"batch {answer.number} of {answer.places} came"
    return f"samples are lost: {wanted} was due and {found}; {WAY_OUT}"


def _whole(answers: Iterable[tuple[int, Batch | None]]) -> Iterator[tuple[int, Batch]]:
    for step, batch in answers:
        assert batch is not None, "training fills every place, or stops"
        yield step, batch


def _with_own_masks(batch: Batch) -> Batch:
    """Masks outlive their batch, since metrics collect them, and one from a worker keeps all of the batch's memory."""
    samples = tuple(
        sample if sample.mask_HW is None else replace(sample, mask_HW=sample.mask_HW.clone())
        for sample in batch.samples
    )
    return replace(batch, samples=samples)
