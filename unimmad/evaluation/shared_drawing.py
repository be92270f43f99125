"""The pictures of all classes, drawn by all ranks: each takes classes in turn.

Maps are not kept while a class is scored: which samples are worth a picture is known only once all of them have their
score, and a few more forward passes cost less than the memory of all maps.

Letters: H x W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from unimmad.checkpoint.thresholds import SensorThreshold
from unimmad.config import EvaluationSettings, Precision
from unimmad.data.edges import overlaps
from unimmad.data.reading.shard_files import SampleRef
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.sample import Sample
from unimmad.data.views import STRETCHED, Geometry, View, whole
from unimmad.evaluation.held_thresholds import HeldThresholds
from unimmad.evaluation.letters import class_letter, drawn_letter, read_class_letter, read_drawn
from unimmad.evaluation.tiling import at_size, score_stored
from unimmad.model.method import Method
from unimmad.ranks.exchange import Letter, Ranks
from unimmad.report.class_pictures import DrawnClass, draw_class
from unimmad.report.drawing import denormalise
from unimmad.report.figures import SamplePicture
from unimmad.report.scored_class import ScoredClass
from unimmad.report.selection import failures_first

LONGEST_SIDE = 512
"""Pixels of what is drawn of a sample, at most."""


def chosen_samples(
    scored: ScoredClass, refs: Sequence[SampleRef], count: int, picture_of: Callable[[SampleRef], SamplePicture]
) -> list[SamplePicture]:
    """The samples of a class that are shown, failures first.

    Args:
        scored: the class.
        refs: its samples, and perhaps some that could not be read.
        count: how many, at most.
        picture_of: scores a sample once more.
    """
    by_key = {ref.entry.key: ref for ref in refs}
    of_sets = [_failures_of(scored, positions, count) for positions in _sets(scored)]
    # Scores of other modalities say nothing of each other: the sets take turns.
    chosen = [choice for turn in zip_longest(*of_sets) for choice in turn if choice is not None][:count]
    return [replace(picture_of(by_key[scored.keys[position]]), note=note) for position, note in chosen]


def _sets(scored: ScoredClass) -> list[list[int]]:
    """Positions of the samples of each set of modalities; all in one where they are alike."""
    if not scored.result.sensor_sets:
        return [list(range(len(scored.keys)))]
    positions: dict[tuple[str, ...], list[int]] = {}
    for position, sensors in enumerate(scored.sensors):
        positions.setdefault(sensors, []).append(position)
    return list(positions.values())


def _failures_of(scored: ScoredClass, positions: Sequence[int], count: int) -> list[tuple[int, str]]:
    """Position and note of the samples chosen from some."""
    defects = [scored.defects[position] for position in positions]
    chosen = failures_first(scored.image_scores[positions], scored.labels[positions], defects, count)
    return [(positions[choice.index], choice.note) for choice in chosen]


def sample_picture(
    model: Method,
    shards: ShardSet,
    ref: SampleRef,
    settings: EvaluationSettings,
    device: torch.device,
    *,
    precision: Precision = "fp32",
    geometry: Geometry = STRETCHED,
    thresholds: HeldThresholds | None = None,
) -> SamplePicture:
    """Read one sample, score it alone, and give what is drawn of it, in the aspect that it is stored in.

    The model must be in eval mode, on ``device``; ``thresholds`` say how far apart edges of normal images' modalities
    may lie.

    Raises:
        ValueError: the sample can't be read, or its class's region of interest does not fit it.
    """
    sample = shards.read_stored(ref, picture_size)
    assert sample.stored is not None
    size = picture_size(sample.stored_size)
    scored = score_stored(model, sample, settings, device, precision, geometry)
    map_HW, weights_HW = at_size(scored.map_HW, scored.look, size)
    shares, parts = scored.shares, [] if scored.parts_MHW is None else list(scored.parts_MHW)
    seen_MCHW = sample.stored.seen(whole(sample.stored_size, size))
    images = tuple(
        (name, denormalise(image_CHW, kind))
        for name, image_CHW, kind in zip(sample.modalities, seen_MCHW, sample.stored.kinds, strict=True)
    )
    return SamplePicture(
        class_name=sample.class_name,
        key=sample.key,
        defect=sample.defect,
        score=scored.score,
        images=images,
        map_HW=_blank_outside(map_HW, weights_HW),
        mask_HW=None if sample.mask_HW is None else sample.mask_HW.numpy(),
        shares=shares if shares is not None and len(shares) > 1 else (),
        parts=tuple(_blank_outside(at_size(part_HW, scored.look, size)[0], weights_HW) for part_HW in parts),
        misaligned=_misaligned(sample, geometry.outline(sample.stored_size, model.image_size), thresholds),
    )


def _blank_outside(map_HW: NDArray[np.float32], weights_HW: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Pictures leave NaN blank."""
    return map_HW if weights_HW is None else np.where(weights_HW > 0, map_HW, np.float32(np.nan))


def _misaligned(sample: Sample, outline: View, thresholds: HeldThresholds | None) -> tuple[str, ...]:
    """As ``Prediction.misaligned``."""
    assert sample.stored is not None
    held = None if thresholds is None else thresholds.of(sample)
    usual = held.edge_gain if isinstance(held, SensorThreshold) else None
    seen_MCHW = sample.stored.seen(outline)[(..., *outline.target.pixels)]
    found = overlaps(seen_MCHW, sample.modalities)
    return tuple(name for name, overlap in found.items() if overlap.is_misaligned(usual))


def picture_size(stored: tuple[int, int]) -> tuple[int, int]:
    """Height and width of what is drawn of an image: its own, or as small as fits a page."""
    scale = min(1.0, LONGEST_SIDE / max(stored))
    return max(1, round(stored[0] * scale)), max(1, round(stored[1] * scale))


def draw_classes(
    classes: Sequence[ScoredClass],
    samples_of: Callable[[ScoredClass], Sequence[SamplePicture]],
    ranks: Ranks,
    progress: bool,
) -> Iterator[tuple[ScoredClass, DrawnClass]]:
    """On rank 0 its ``classes`` in order, with their pictures; elsewhere nothing, but all must iterate.

    Args:
        classes: rank 0's count.
        samples_of: the samples to show of a class.
        ranks: those that share the work.
        progress: whether to show a bar.

    Raises:
        ValueError: a sample can't be read, or another rank had to stop.
    """
    others = [(place, scored) for place, scored in enumerate(classes) if place % ranks.size and ranks.is_main]
    letters = [Letter(place % ranks.size, class_letter(scored.class_name, scored)) for place, scored in others]
    totals, inbox = ranks.exchange(len(classes), letters)
    received = [read_class_letter(content)[1] for content in inbox[0]]
    own = deque(classes[:: ranks.size] if ranks.is_main else [scored for scored in received if scored is not None])
    with tqdm(total=totals[0], desc="draw", unit="class", disable=None if progress else True) as bar:
        for first in range(0, totals[0], ranks.size):
            drawn = [draw_class(scored, samples_of(scored)) for scored in (own.popleft(),)] if own else []
            _, inbox = ranks.exchange(None, [] if ranks.is_main else [Letter(0, drawn_letter(one)) for one in drawn])
            if ranks.is_main:
                drawn += [read_drawn(content) for contents in inbox for content in contents]
                bar.update(len(drawn))
                yield from zip(classes[first:], drawn, strict=False)
