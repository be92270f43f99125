"""Scores some normal images of each class once training is done: see ``checkpoint/normal_maps.py``.

Letters: B samples, H x W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from unimmad.checkpoint.loading import LoadedCheckpoint
from unimmad.checkpoint.normal_maps import NormalMaps, normal_maps
from unimmad.checkpoint.thresholds import Sensors
from unimmad.data.index import Split
from unimmad.data.reading.shard_files import SampleRef
from unimmad.data.reading.shard_set import CorruptSampleError, ShardSet
from unimmad.data.sample import Sample, collate
from unimmad.data.views import Geometry
from unimmad.evaluation.geometry import scoring_geometry
from unimmad.evaluation.scoring import chosen_precision, scoring_form
from unimmad.evaluation.tiling import score_samples
from unimmad.model.method import Fitted, Method

IMAGES_A_SET = 8
"""Images of a class that have the same modalities; enough for a scale of colours."""
MOST_IMAGES = 256


def measure_normals(
    checkpoint: LoadedCheckpoint, shards: ShardSet, device: torch.device, made: Method | None = None
) -> NormalMaps | None:
    """What normal images' maps are like: those of the calibration split where there is one, else training images.

    Args:
        checkpoint: its model is brought into its inference form.
        shards: what it was trained on.
        device: what to compute on.
        made: the model as training left it. A fitted method has seen the training images, so that their maps would be
            near 0: by this they are scored as if it had not.

    Returns:
        None where nothing can be said: a fitted method, and of no class a training image that can be left out.

    Raises:
        ValueError: a map or a shard can't be had.
    """
    split: Split = "calibration" if shards.has("calibration") else "train"
    settings = checkpoint.recipe.evaluation.model_copy(update={"compile": False})
    geometry = scoring_geometry(checkpoint.recipe)
    model = scoring_form(checkpoint.model, settings, device)
    precision = chosen_precision(None, device)
    is_seen = split == "train" and isinstance(model, Fitted)
    found: dict[tuple[str, Sensors], list[tuple[float, float]]] = {}
    for refs in _chosen(shards, split, 2 if is_seen else 1):
        samples = [sample for ref in refs if (sample := _read(shards, ref, model.image_size, geometry)) is not None]
        for of_batch in _one_by_one(samples, model, made) if is_seen else [samples] if samples else []:
            batch, scored = score_samples(model, collate(of_batch), settings, device, precision, geometry)
            maps = scored.maps_BHW.cpu().numpy()
            usual = [usual_value(map_HW, sample) for map_HW, sample in zip(maps, batch.samples, strict=True)]
            of_set = found.setdefault((samples[0].class_name, samples[0].modalities), [])
            of_set += zip(usual, scored.scores_B.tolist(), strict=True)
    return normal_maps(split, found) if found else None


def _one_by_one(samples: list[Sample], model: Method, made: Method | None) -> Iterator[list[Sample]]:
    """Samples that a fitted method has seen, each while it is left out; none where that can't be."""
    assert isinstance(model, Fitted)
    if isinstance(made, Fitted):
        model.take_owners(made)
    for sample in samples:
        with model.leave_out(sample.photograph):
            if model.has_others(sample.class_name):
                yield [sample]


def usual_value(map_HW: NDArray[np.float32], sample: Sample) -> float:
    """The median of a map's values that are looked at."""
    return float(np.median(looked_at(map_HW, sample)))


def looked_at(map_HW: NDArray[np.float32], sample: Sample) -> NDArray[np.float32]:
    """The map's values inside of the sample's region of interest, and not of padding."""
    if sample.weights_HW is not None:
        return map_HW[sample.weights_HW.numpy() > 0]
    return map_HW if sample.view is None else map_HW[sample.view.target.pixels]


def _chosen(shards: ShardSet, split: Split, least: int) -> list[list[SampleRef]]:
    """The first samples of each class and set of modalities, if the class has each of these ``least`` times."""
    sets: dict[tuple[str, frozenset[str]], list[SampleRef]] = {}
    for class_name, refs in shards.classes(split).items():
        having = Counter(modality for ref in refs for modality in ref.entry.images)
        for ref in refs:
            if min(having[modality] for modality in ref.entry.images) < least:
                continue
            of_set = sets.setdefault((class_name, frozenset(ref.entry.images)), [])
            if len(of_set) < IMAGES_A_SET:
                of_set.append(ref)
    each = max(1, min(IMAGES_A_SET, MOST_IMAGES // max(1, len(sets))))
    return [refs[:each] for refs in sets.values()]


def _read(shards: ShardSet, ref: SampleRef, image_size: int, geometry: Geometry) -> Sample | None:
    """With its region of interest; None where it is corrupt, as training may have been told to pass over."""
    try:
        if geometry.tiles is not None:
            return shards.read_stored(ref, lambda _: (image_size, image_size))
        return shards.read(ref, image_size, aspect=geometry.aspect)
    except CorruptSampleError:
        return None
