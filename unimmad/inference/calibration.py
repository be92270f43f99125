"""Scores the split ``calibration``, normal images that training never saw, and takes thresholds from them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from unimmad.checkpoint.loading import LoadedCheckpoint
from unimmad.checkpoint.thresholds import Thresholds, check_rate, images_needed, make_thresholds
from unimmad.config import Precision
from unimmad.data.location import DataFolder
from unimmad.data.reading.shard_cache import ShardCache
from unimmad.data.reading.shard_set import SampleRef, ShardSet
from unimmad.data.reading.skipping import OnError, SkipLog
from unimmad.data.reading.stream import evaluation_rounds
from unimmad.data.roi import given_rois
from unimmad.data.sample import Batch, Sample
from unimmad.data.synthetic.default_set import SYNTHETIC_FOLDER
from unimmad.evaluation.geometry import scoring_geometry
from unimmad.evaluation.resume import evaluation_fingerprint
from unimmad.evaluation.scoring import check_scored
from unimmad.evaluation.tiling import score_samples
from unimmad.inference.engines import ModelEngine
from unimmad.metrics.at_threshold import Spread
from unimmad.ranks.exchange import ALONE, Ranks

MAKE_SHARDS = "unimmad shards {} --target {} --calibration-fraction 0.2"
MOST_NAMES = 3
"""Classes that a note lists."""


def calibrate(
    checkpoint: LoadedCheckpoint,
    data: Sequence[DataFolder],
    false_alarm_rate: float,
    *,
    device: torch.device,
    precision: Precision | None = None,
    workers: int = 0,
    progress: bool = True,
    cache: ShardCache | None = None,
    on_error: OnError = "stop",
    roi: Path | None = None,
    ranks: Ranks = ALONE,
) -> Thresholds:
    """Thresholds of every class at ``false_alarm_rate``; the same on every rank.

    Args:
        checkpoint: a loaded one.
        data: shard folders with a calibration split.
        false_alarm_rate: share of normal images that may be called anomalous, between 0 and 1.
        device: what to compute on.
        precision: None: ``default_precision``, as in evaluation.
        workers: loader processes of each rank.
        progress: whether to show a bar.
        cache: for shards from URLs; None: the default one.
        on_error: ``skip`` leaves corrupt samples out, and says so.
        roi: where to look, in place of the data's own regions of interest; see ``data.roi.given_rois``.
        ranks: those that share the work, all with the same arguments.

    Raises:
        ValueError: no calibration split, an anomalous image in it, data that can't be read or don't fit the model, or a
            score that is NaN or infinite.
    """
    check_rate(false_alarm_rate)
    shards = ShardSet.open(data, cache)
    references = shards.classes("calibration")
    if roi is not None:
        shards = shards.with_rois(given_rois(roi, references))
    _check_split(references, data)
    geometry = scoring_geometry(checkpoint.recipe)
    engine = ModelEngine(checkpoint.model, checkpoint.recipe.evaluation, device, precision, geometry)
    computed = {"device": device.type, "precision": engine.precision}
    ranks.check_same(
        evaluation_fingerprint(checkpoint.weights_digest, shards, computed),
        "another checkpoint, other data, another kind of device or another precision",
    )
    slots = checkpoint.model.modality_slots
    if shards.max_slot >= slots:
        raise ValueError(f"the data use modality slot {shards.max_slot}; the model has slots 0 to {slots - 1} only")
    scores: dict[str, list[float]] = {name: [] for name in references}
    modalities: dict[str, dict[str, None]] = {name: {} for name in references}
    spreads = dict.fromkeys(references, Spread())
    rounds = evaluation_rounds(
        shards,
        "calibration",
        rank=ranks.rank,
        world_size=ranks.size,
        image_size=engine.image_size,
        batch_size=checkpoint.recipe.evaluation.batch_size,
        workers=workers,
        on_error=on_error,
        skip_log=SkipLog("it is left out"),
        geometry=geometry,
    )
    total = sum(len(of_class) for of_class in references.values())
    quiet = not (progress and ranks.is_main)
    with tqdm(total=total, desc="calibrate", unit="image", disable=quiet or None) as bar:
        for batch in rounds:
            for of_rank in ranks.gather([] if batch is None else _scored(engine, batch)):  # in order of batches
                for class_name, names, score, spread in of_rank:
                    scores[class_name].append(score)
                    spreads[class_name] = spreads[class_name].joined(spread)
                    modalities[class_name].update(dict.fromkeys(names))
                bar.update(len(of_rank))
    scores = {name: of_class for name, of_class in scores.items() if of_class}
    if not scores:
        raise ValueError(f"{', '.join(map(str, data))}: no sample of the calibration split can be read")
    thresholds = make_thresholds(
        scores,
        {name: tuple(modalities[name]) for name in scores},
        shards.datasets,
        tuple(shards.classes("train")),
        false_alarm_rate,
        engine.precision,
    )
    pixel_values = {name: spread.threshold() for name, spread in spreads.items()}
    return thresholds.with_pixel_values(pixel_values, reduce(Spread.joined, spreads.values()).threshold())


def _scored(engine: ModelEngine, batch: Batch) -> list[tuple[str, tuple[str, ...], float, Spread]]:
    """Class, modalities, image score and the spread of the map's values of each sample.

    Raises:
        ValueError: a map or score is not finite; names the sample.
    """
    batch, scored = score_samples(
        engine.model, batch, engine.settings, engine.device, engine.precision, engine.geometry
    )
    maps_BHW, scores = scored.maps_BHW.cpu().numpy(), scored.scores_B.tolist()
    for sample, map_HW, score in zip(batch.samples, maps_BHW, scores, strict=True):
        check_scored(f"{sample.class_name} {sample.key}", map_HW, score)
    return [
        (sample.class_name, sample.modalities, score, Spread.of(_looked_at(map_HW, sample)))
        for sample, map_HW, score in zip(batch.samples, maps_BHW, scores, strict=True)
    ]


def _looked_at(map_HW: NDArray[np.float32], sample: Sample) -> NDArray[np.float32]:
    """The map's values inside of the region of interest, and not of padding."""
    if sample.weights_HW is not None:
        return map_HW[sample.weights_HW.numpy() > 0]
    return map_HW if sample.view is None else map_HW[sample.view.target.pixels]


def describe(thresholds: Thresholds) -> str:
    """The thresholds as a table for the screen, and what they can't promise."""
    widest = max(len(name) for name in ["all classes", *thresholds.classes])
    lines = [f"{'class':{widest}}  images  threshold  false alarms at most"]
    for name, found in [*thresholds.classes.items(), ("all classes", thresholds.all_classes)]:
        lines.append(f"{name:{widest}}  {found.images:6d}  {found.value:9.4g}  {found.fpr_bound:.3%}")
    lines.append(f"scored in {thresholds.precision}")
    few = thresholds.too_few()
    if few:
        rate = thresholds.false_alarm_rate
        lines.append(
            f"note: a false-alarm rate of {rate:g} needs {images_needed(rate)} calibration images of a class; with "
            f"fewer the threshold is their largest score and promises only the rate above: {_some(few)}"
        )
    return "\n".join(lines)


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:MOST_NAMES])
    return shown if len(names) <= MOST_NAMES else f"{shown} and {len(names) - MOST_NAMES} more"


def _check_split(references: dict[str, tuple[SampleRef, ...]], data: Sequence[DataFolder]) -> None:
    if not references:
        source, target = ("synthetic", "data/calibrated") if list(data) == [SYNTHETIC_FOLDER] else ("SOURCE", "DIR")
        raise ValueError(
            f"{', '.join(map(str, data))}: no calibration split, and thresholds need normal images that were set aside "
            f"for them. Make shards with some ({MAKE_SHARDS.format(source, target)}), train on those (unimmad train "
            f"--data {target}), and calibrate then; or name shards that have such a split with --data"
        )
