"""The run over a split: batches in, maps and scores out, metrics class by class, a few pictures.

Three things go on at once: loader processes decode ahead, this thread runs the model, and one more thread collects
the metrics (NumPy and torch give way to other threads while they sort and copy). So the slowest of them decides.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from unimmad.config import EvaluationSettings
from unimmad.data.index import Split
from unimmad.data.shard_set import ShardSet
from unimmad.data.skipping import OnError, SkipLog
from unimmad.data.stream import evaluation_batches
from unimmad.evaluation.collecting import ClassScores, MetricsThread, ScoredClass
from unimmad.evaluation.sample_picture import sample_picture
from unimmad.evaluation.scoring import MaskRule, Precision, score_on_device
from unimmad.evaluation.selection import failures_first
from unimmad.model.unimmad import UniMMAD


def evaluate_classes(
    model: UniMMAD,
    shards: ShardSet,
    split: Split,
    settings: EvaluationSettings,
    *,
    device: torch.device,
    workers: int,
    mask_resize: MaskRule = "nearest",
    progress: bool = True,
    precision: Precision = "fp32",
    finished: Mapping[str, ScoredClass] | None = None,
    spill_to: Path | None = None,
    on_error: OnError = "stop",
    skip_log: SkipLog | None = None,
) -> Generator[ScoredClass, None, None]:
    """Score every sample of ``split`` and give each class's result once it is complete, in index order.

    Args:
        finished: classes scored before, by ``DATASET/CLASS``: only their pictures are made anew.
        spill_to: see ``MetricAccumulator``.
        on_error: ``skip`` leaves corrupt samples out; a class that loses all of them gives no result.
        skip_log: counts what was left out.

    Raises:
        ValueError: the split is empty, a sample can't be read, a modality's slot is beyond the model's, or a map
            has NaN.
    """
    _check_slots(model, shards)
    model.eval()
    refs_of = shards.classes(split)
    finished = finished or {}
    todo = [name for name in refs_of if name not in finished]
    batches = evaluation_batches(
        shards,
        split,
        image_size=model.architecture.image_size,
        batch_size=settings.batch_size,
        workers=workers,
        classes=todo,
        mask_resize=mask_resize,
        on_error=on_error,
        skip_log=skip_log,
    )
    by_class = itertools.groupby(batches, key=lambda batch: batch.samples[0].class_name)
    draw = partial(
        sample_picture,
        model,
        shards,
        settings=settings,
        device=device,
        precision=precision,
        mask_resize=mask_resize,
    )

    def with_pictures(scored: ScoredClass) -> ScoredClass:
        by_key = {ref.entry.key: ref for ref in refs_of[scored.class_name]}
        chosen = failures_first(scored.image_scores, scored.labels, scored.defects, settings.pictures_per_class)
        pictures = (replace(draw(by_key[scored.keys[choice.index]]), note=choice.note) for choice in chosen)
        return replace(scored, pictures=tuple(pictures))

    total = sum(len(refs_of[name]) for name in todo)
    label = f"evaluate {split}, {precision} on {device.type}"
    bar = tqdm(total=total, desc=label, unit="image", disable=None if progress else True)
    waiting: deque[Future[ScoredClass]] = deque()

    def complete(wait: bool = False) -> Iterator[ScoredClass]:
        while waiting and (wait or waiting[0].done()):
            yield with_pictures(waiting.popleft().result())

    with bar, MetricsThread() as metrics:
        group = next(by_class, None)
        for class_name in refs_of:
            if class_name in finished:
                waiting.append(_done(finished[class_name]))
            elif group is not None and group[0] == class_name:
                field = shards.datasets[class_name.partition("/")[0]].field
                scores = ClassScores(class_name, field, model.architecture.leaders, spill_to)
                for batch in group[1]:
                    scored = score_on_device(model, batch, settings, device, precision)
                    metrics.add(scores, batch.samples, scored)
                    bar.update(batch.size)
                    yield from complete()
                waiting.append(metrics.finish(scores))
                group = next(by_class, None)
        yield from complete(wait=True)


def _check_slots(model: UniMMAD, shards: ShardSet) -> None:
    slots = model.architecture.modality_slots
    if shards.max_slot >= slots:
        raise ValueError(f"the data use modality slot {shards.max_slot}; the model has slots 0 to {slots - 1} only")


def _done(scored: ScoredClass) -> Future[ScoredClass]:
    future: Future[ScoredClass] = Future()
    future.set_result(scored)
    return future
