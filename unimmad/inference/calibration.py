"""Scores the split ``calibration``, normal images that training never saw, and takes thresholds from them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, compress
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
from tqdm import tqdm

from unimmad.checkpoint.added_classes import with_added_classes
from unimmad.checkpoint.conformal import check_rate, images_needed, thresholds_by_sensors
from unimmad.checkpoint.feedback import load_feedback
from unimmad.checkpoint.grown_banks import banked_digests, with_feedback
from unimmad.checkpoint.loading import LoadedCheckpoint
from unimmad.checkpoint.thresholds import Sensors, Threshold, Thresholds
from unimmad.checkpoint.trained_on import TrainedOn
from unimmad.config import Precision, TileSettings
from unimmad.data.edges import Overlap, overlaps, usual_gain
from unimmad.data.location import DataFolder
from unimmad.data.reading.shard_cache import ShardCache
from unimmad.data.reading.shard_files import SampleRef
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.reading.skipping import OnError, SkipLog, Skipped
from unimmad.data.reading.stream import evaluation_rounds
from unimmad.data.roi import given_rois
from unimmad.data.sample import Batch
from unimmad.data.synthetic.default_set import SYNTHETIC_FOLDER
from unimmad.evaluation.geometry import scoring_geometry, with_tiles
from unimmad.evaluation.modalities import keep_modalities
from unimmad.evaluation.normal_maps import looked_at, usual_value
from unimmad.evaluation.resume import evaluation_fingerprint
from unimmad.evaluation.scoring import check_scored
from unimmad.evaluation.tiling import score_samples
from unimmad.inference.deciding import ALL_CLASSES
from unimmad.inference.engines import ModelEngine
from unimmad.inference.inputs import EncodedImage, InputSample
from unimmad.inference.measuring import CalibrationFacts, facts_of_batch
from unimmad.inference.reading import pixels_digest
from unimmad.metrics.at_threshold import Spread
from unimmad.ranks.exchange import ALONE, Ranks

logger = logging.getLogger(__name__)

MAKE_SHARDS = "unimmad shards {} --target {} --calibration-fraction 0.2"
MOST_NAMES = 3
"""Classes that a note lists."""


class KeptSensors(NamedTuple):
    """Which modalities are scored of which classes."""

    modalities: Sensors
    classes: tuple[str, ...]
    """``DATASET/CLASS``."""


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
    facts: list[CalibrationFacts] | None = None,
    tiles: TileSettings | None = None,
    kept: KeptSensors | None = None,
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
        facts: filled with what ``measuring.made_reference`` takes, the same on every rank; None: it is not measured.
        tiles: to score by, in place of the recipe's.
        kept: score some classes by some of their modalities alone.
        ranks: those that share the work, all with the same arguments.

    Raises:
        ValueError: no calibration split, an anomalous image in it, or one that training saw or a bank has; data that
            can't be read or don't fit the model; or a score that is NaN or infinite.
    """
    check_rate(false_alarm_rate)
    checkpoint = with_feedback(with_added_classes(checkpoint))
    in_banks = banked_digests(load_feedback(checkpoint.folder, None, None), checkpoint.added)
    shards = ShardSet.open(data, cache, checkpoint.trained_datasets)
    references = shards.classes("calibration")
    if roi is not None:
        shards = shards.with_rois(given_rois(roi, references))
    _check_split(references, data)
    _check_unseen(checkpoint, shards, data, warn=ranks.is_main and kept is None)
    if kept is not None:
        shards = keep_modalities(shards, "calibration", kept.modalities, kept.classes)
        references = shards.classes("calibration")
    refs = {(name, ref.entry.key): ref for name, of_class in references.items() for ref in of_class}
    recipe = with_tiles(checkpoint.recipe, tiles)
    geometry = scoring_geometry(recipe)
    engine = ModelEngine(checkpoint.model, recipe.evaluation, device, precision, geometry)
    computed = {"device": device.type, "precision": engine.precision, "tiles": recipe.evaluation.tiles.model_dump()}
    ranks.check_same(
        evaluation_fingerprint(checkpoint.weights_digest, shards, computed),
        "another checkpoint, other data, another kind of device, another precision or other tiles",
    )
    slots = checkpoint.model.modality_slots
    if shards.max_slot >= slots:
        raise ValueError(f"the data use modality slot {shards.max_slot}; the model has slots 0 to {slots - 1} only")
    scores: dict[str, dict[Sensors, list[float]]] = {name: {} for name in references}
    usual: dict[str, dict[Sensors, list[float]]] = {name: {} for name in references}
    spreads: dict[str, dict[Sensors, Spread]] = {name: {} for name in references}
    overlapping: dict[str, dict[Sensors, list[Overlap]]] = {name: {} for name in references}
    skip_log = SkipLog("it is left out")
    rounds = evaluation_rounds(
        shards,
        "calibration",
        rank=ranks.rank,
        world_size=ranks.size,
        image_size=engine.image_size,
        batch_size=recipe.evaluation.batch_size,
        workers=workers,
        on_error=on_error,
        skip_log=skip_log,
        geometry=geometry,
    )
    total = sum(len(of_class) for of_class in references.values())
    quiet = not (progress and ranks.is_main)
    digested = kept is None and (bool(in_banks) or facts is not None)
    with (
        ThreadPoolExecutor(max(1, workers)) as pool,
        tqdm(total=total, desc="calibrate", unit="image", disable=quiet or None) as bar,
    ):
        for batch in rounds:
            samples = () if batch is None else batch.samples
            found = [] if batch is None else _scored(engine, batch)
            of_batch = [refs[sample.class_name, sample.key] for sample in samples]
            digests = _digests(of_batch, shards, pool, on_error, skip_log) if digested else [""] * len(samples)
            read = [digest is not None for digest in digests]
            for of_rank in ranks.gather(list(compress(found, read))):  # in order of batches
                for class_name, names, score, median, spread, edges_found in of_rank:
                    overlapping[class_name].setdefault(names, []).extend(edges_found)
                    scores[class_name].setdefault(names, []).append(score)
                    usual[class_name].setdefault(names, []).append(median)
                    spreads[class_name][names] = spreads[class_name].get(names, Spread()).joined(spread)
                bar.update(len(of_rank))
            pixels = [(sample.key, digest) for sample, digest in zip(samples, digests, strict=True) if digest]
            _check_not_in_banks(chain.from_iterable(ranks.gather(pixels)), in_banks, checkpoint)
            if facts is not None:
                measured = (
                    []
                    if batch is None
                    else _measured(engine, batch, shards, [score for _, _, score, *_ in found], digests)
                )
                facts += [one for of_rank in ranks.gather(measured) for one in of_rank]
    scores = {name: of_class for name, of_class in scores.items() if of_class}
    if not scores:
        raise ValueError(f"{', '.join(map(str, data))}: no sample of the calibration split can be read")
    thresholds = thresholds_by_sensors(
        scores,
        shards.datasets,
        # Of an added class without calibration images the threshold is borrowed, and so not that of all classes.
        tuple(name for name in shards.classes("train") if name in scores or name not in checkpoint.added),
        false_alarm_rate,
        engine.precision,
        usual,
    )
    gains = {
        name: {sensors: usual_gain(found) for sensors, found in of_class.items()}
        for name, of_class in overlapping.items()
    }
    found_thresholds = thresholds.with_pixel_values(spreads).with_edge_gains(gains)
    return found_thresholds.model_copy(update={"tiles": recipe.evaluation.tiles})


def _scored(engine: ModelEngine, batch: Batch) -> list[tuple[str, Sensors, float, float, Spread, list[Overlap]]]:
    """Class, modalities, image score, the map's median, the spread of its values, and how its modalities' edges
    lie over each other, of each sample.

    Raises:
        ValueError: a map or score is not finite; names the sample.
    """
    overlapping = _overlaps(engine, batch)
    batch, scored = score_samples(
        engine.model, batch, engine.settings, engine.device, engine.precision, engine.geometry
    )
    maps_BHW, scores = scored.maps_BHW.cpu().numpy(), scored.scores_B.tolist()
    for sample, map_HW, score in zip(batch.samples, maps_BHW, scores, strict=True):
        check_scored(f"{sample.class_name} {sample.key}", map_HW, score)
    return [
        (
            sample.class_name,
            sample.modalities,
            score,
            usual_value(map_HW, sample),
            Spread.of(looked_at(map_HW, sample)),
            found,
        )
        for sample, map_HW, score, found in zip(batch.samples, maps_BHW, scores, overlapping, strict=True)
    ]


def _measured(
    engine: ModelEngine, batch: Batch, shards: ShardSet, scores: Sequence[float], digests: Sequence[str | None]
) -> list[CalibrationFacts]:
    found = facts_of_batch(engine, batch, shards.datasets)
    return [
        CalibrationFacts(sample.class_name, sample.key, sample.modalities, score, images, digest)
        for sample, score, images, digest in zip(batch.samples, scores, found, digests, strict=True)
        if digest is not None
    ]


def _digests(
    refs: Sequence[SampleRef], shards: ShardSet, pool: ThreadPoolExecutor, on_error: OnError, skip_log: SkipLog
) -> list[str | None]:
    """``pixels_digest`` of each sample; None of one that can't be read this second time, and is left out.

    Raises:
        ValueError: one can't, and ``on_error`` is to stop.
    """
    reading = Lock()
    found: list[str | None] = []
    for ref, digest in [(ref, pool.submit(_digest, ref, shards, reading)) for ref in refs]:
        try:
            found.append(digest.result())
        except ValueError as error:
            if on_error == "stop":
                raise
            skip_log.add([Skipped(shards.shard_name(ref), str(error))])
            found.append(None)
    return found


def _digest(ref: SampleRef, shards: ShardSet, reading: Lock) -> str:
    with reading:  # shards close files of each other
        images = {
            name: EncodedImage(shards.member_bytes(ref, member), member.name)
            for name, member in ref.entry.images.items()
        }
    return pixels_digest(InputSample(f"{ref.class_name} {ref.entry.key}", images))


def _check_not_in_banks(pixels: Iterable[tuple[str, str]], in_banks: Set[str], checkpoint: LoadedCheckpoint) -> None:
    """
    Raises:
        ValueError: an image is in one, so that its score would be too low.
    """
    if held := [name for name, digest in pixels if digest in in_banks]:
        raise ValueError(
            f"{_some(held)} of the calibration split: feedback or add-class put these images into a bank of "
            f"{checkpoint.folder}, which would give thresholds too low; calibrate by others, or take them out of it "
            "(unimmad feedback --undo, add-class --remove)"
        )


def _overlaps(engine: ModelEngine, batch: Batch) -> list[list[Overlap]]:
    """Of each sample those of ``data.edges.overlaps``."""
    images = iter(batch.images_TCHW.split(batch.tokens_per_sample) if len(batch.images_TCHW) else ())
    found = []
    for sample in batch.samples:
        if sample.stored is not None:
            view = engine.geometry.outline(sample.stored.size, engine.image_size)
            images_MCHW = sample.stored.seen(view)[(..., *view.target.pixels)]
        else:
            pixels = () if sample.view is None else sample.view.target.pixels
            images_MCHW = next(images)[(..., *pixels)]
        found.append(list(overlaps(images_MCHW, sample.modalities).values()))
    return found


def _check_unseen(checkpoint: LoadedCheckpoint, shards: ShardSet, data: Sequence[DataFolder], warn: bool) -> None:
    """Whether training left the calibration split alone: other shards of the same images may have it elsewhere.

    Raises:
        ValueError: it did not; an older checkpoint, which does not say it, or one grown out of it, is only warned of.
    """
    trained_on, where = checkpoint.trained_on, ", ".join(map(str, data))
    if trained_on is None:
        return
    samples = {name: [ref.entry for ref in refs] for name, refs in shards.classes("calibration").items()}
    keys = trained_on.seen(sample for of_class in samples.values() for sample in of_class)
    if keys:
        total = sum(map(len, samples.values()))
        raise ValueError(
            f"{where}: {len(keys)} of {total} calibration images are ones that {checkpoint.folder} was trained on "
            f"({_some(keys)}), which would give thresholds too low; calibrate by the shards that it was trained on, or "
            "train on these"
        )
    if not warn or trained_on.samples.keys() >= set(trained_on.classes):
        return
    now = TrainedOn.of(
        shards.datasets, {name: [ref.entry for ref in refs] for name, refs in shards.classes("train").items()}
    )
    unsaid = [name for name in samples if name not in trained_on.samples]
    if any(now.digests.get(name) != trained_on.digests.get(name) for name in unsaid):
        logger.warning(
            "note: %s does not say which images it was trained on, and %s has others than it; make sure that the "
            "calibration split is none of them",
            checkpoint.folder,
            where,
        )


def describe(thresholds: Thresholds, looks_at_class: bool = False) -> str:
    """The thresholds as a table for the screen, and what they can't promise.

    Args:
        thresholds: all.
        looks_at_class: whether scores depend on the class, see ``Method.looks_at_class``.
    """
    rows = list(_rows(thresholds))
    widest = max(len(name) for name, _ in rows)
    lines = [f"{'class':{widest}}  images  threshold  false alarms at most"]
    for name, found in rows:
        lines.append(f"{name:{widest}}  {found.images:6d}  {found.value:9.4g}  {found.fpr_bound:.3%}")
    lines.append(f"scored in {thresholds.precision}")
    if looks_at_class:
        lines.append(
            f"note: {ALL_CLASSES} is not used for images whose class is not named: the method's scores depend on the "
            "class, so that these are not decided (unimmad predict --class)"
        )
    few = thresholds.too_few()
    if few:
        rate = thresholds.false_alarm_rate
        lines.append(
            f"note: a false-alarm rate of {rate:g} needs {images_needed(rate)} calibration images of a class; with "
            f"fewer the threshold is their largest score and promises only the rate above: {_some(few)}"
        )
    if without := thresholds.without_images():
        lines.append(
            f"note: no calibration image is of {_some(without)}: decided by the threshold of all classes, which "
            "promises no rate for these; set more aside (unimmad shards --calibration-fraction)"
        )
    return "\n".join(lines)


def _rows(thresholds: Thresholds) -> Iterator[tuple[str, Threshold]]:
    """Sets of modalities are named where there are several."""
    for name, found in thresholds.classes.items():
        for part in (found, *found.sets):
            yield (f"{name} ({', '.join(part.modalities)})" if found.sets else name), part
    if len(thresholds.sensor_sets) < 2:
        yield ALL_CLASSES, thresholds.all_classes
        return
    for part in thresholds.sensor_sets:
        yield f"{ALL_CLASSES} ({', '.join(part.modalities)})", part


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
