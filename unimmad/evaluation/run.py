"""The run over a split: batches in, maps and scores out, metrics class by class.

Three things go on at once: loader processes decode ahead, this thread runs the model, and one more thread collects
the metrics (NumPy and torch give way to other threads while they sort and copy). So the slowest of them decides.

Several ranks share the work out. Batches are the same as with one rank; they are scored in rounds, one a rank in turn.
All batches of a class go to one rank, in index order, which collects them and computes the metrics; the classes' ranks
are taken in turn. What comes of it goes to rank 0. So nothing depends on the number of ranks, to the last bit, and a
rank holds the pixels of its own classes only.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from unimmad.config import EvaluationSettings, Precision
from unimmad.data.index import Split
from unimmad.data.mask_resize import MaskRule
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.reading.skipping import OnError, SkipLog
from unimmad.data.reading.stream import evaluation_rounds, images_together
from unimmad.data.views import STRETCHED, Geometry
from unimmad.evaluation.collecting import MOST_WAITING, ClassScores, MetricsThread
from unimmad.evaluation.exchange import Exchange, InOrder, OwnClasses, last_rounds
from unimmad.evaluation.held_thresholds import HeldThresholds
from unimmad.evaluation.tiling import score_originals, score_samples
from unimmad.model.method import Method
from unimmad.ranks.exchange import ALONE, Ranks
from unimmad.report.scored_class import ScoredClass

T = TypeVar("T")


def evaluate_classes(
    model: Method,
    shards: ShardSet,
    split: Split,
    settings: EvaluationSettings,
    *,
    device: torch.device,
    workers: int,
    mask_resize: MaskRule = "nearest",
    geometry: Geometry = STRETCHED,
    progress: bool = True,
    precision: Precision = "fp32",
    finished: Mapping[str, ScoredClass] | None = None,
    scratch_dir: Path | None = None,
    thresholds: HeldThresholds | None = None,
    on_error: OnError = "stop",
    skip_log: SkipLog | None = None,
    ranks: Ranks = ALONE,
) -> Generator[ScoredClass, None, None]:
    """Score every sample of ``split`` and give each class's result once it is complete, in index order.

    Args:
        workers: loader processes of this rank.
        mask_resize: how masks come to the model's size.
        geometry: by which views images are scored.
        finished: classes scored before, by ``DATASET/CLASS``, which are given as they are. Rank 0's count.
        scratch_dir: see ``MetricAccumulator``.
        thresholds: to count by what is called anomalous, if any.
        on_error: ``skip`` leaves corrupt samples out; a class that loses all of them gives no result.
        skip_log: counts what this rank left out.
        ranks: those that share the work, all with the same arguments; results are given to rank 0 only.

    Raises:
        ValueError: the split is empty, a sample can't be read, a modality's slot is beyond the model's, or a map
            or score is NaN or infinite.
    """
    _check_slots(model, shards)
    model.eval()
    refs_of = shards.classes(split)
    finished_names = ranks.broadcast_object(list(finished or {}))
    todo = {name: len(refs) for name, refs in refs_of.items() if name not in finished_names}
    collector_of = {name: place % ranks.size for place, name in enumerate(todo)}
    last_round_of = last_rounds(todo, images_together(settings.batch_size, geometry), ranks.size)
    rounds = evaluation_rounds(
        shards,
        split,
        rank=ranks.rank,
        world_size=ranks.size,
        image_size=model.image_size,
        batch_size=settings.batch_size,
        workers=workers,
        classes=list(todo),
        mask_resize=mask_resize,
        geometry=geometry,
        resolution=settings.resolution,
        on_error=on_error,
        skip_log=skip_log,
    )

    def new_scores(class_name: str) -> ClassScores:
        field = shards.datasets[class_name.partition("/")[0]].field
        return ClassScores(class_name, field, model.leaders, scratch_dir, thresholds)

    label = f"evaluate {split}, {precision} on {device.type}"
    bar = tqdm(total=sum(todo.values()), desc=label, unit="image", disable=None if progress else True)
    in_order = InOrder(refs_of)
    yield from in_order.take((finished or {}).items())
    with bar, MetricsThread(MOST_WAITING[settings.resolution]) as metrics:
        own_names = [name for name, collector in collector_of.items() if collector == ranks.rank]
        own = OwnClasses(own_names, metrics, new_scores)
        exchange = Exchange(ranks, collector_of, own)
        score = score_samples if settings.resolution == "model" else score_originals
        scored_rounds = (
            None if batch is None else score(model, batch, settings, device, precision, geometry) for batch in rounds
        )
        for number, scored_batch in enumerate(_one_ahead(scored_rounds)):
            finished_now = exchange(own.complete(), scored_batch)
            bar.update(exchange.samples)
            for name in own_names:
                if last_round_of[name] == number:
                    own.finish(name)
            yield from in_order.take(finished_now)
        while exchange.left_anywhere:
            yield from in_order.take(exchange(own.complete(wait=True)))


def _one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Each item once the next one is begun: a GPU then computes while its host hands over what it computed before."""
    before: list[T] = []
    for item in items:
        yield from before
        before = [item]
    yield from before


def _check_slots(model: Method, shards: ShardSet) -> None:
    slots = model.modality_slots
    if shards.max_slot >= slots:
        raise ValueError(f"the data use modality slot {shards.max_slot}; the model has slots 0 to {slots - 1} only")
