"""Scored batches, finished classes and their pictures as bytes, for another rank: safetensors with JSON beside.

Every number arrives as it was, to the last bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load, save

from unimmad.data.mask_resize import MaskLoss
from unimmad.data.sample import Sample
from unimmad.data.views import Box, View
from unimmad.evaluation.collecting import ScoredBatch
from unimmad.report.class_pictures import DrawnClass
from unimmad.report.figures import SamplePicture
from unimmad.report.scored_class import ScoredClass, read_scored, scored_entry

_FACTS = "facts"


def batch_letter(batch: ScoredBatch) -> bytes:
    """A scored batch."""
    arrays: dict[str, NDArray] = {f"map {number}": map_HW for number, map_HW in enumerate(batch.maps)}
    if batch.leaders_TGK is not None:
        arrays["leaders"] = batch.leaders_TGK
    for number, sample in enumerate(batch.samples):
        if sample.mask_HW is not None:
            arrays[f"mask {number}"] = sample.mask_HW.numpy()
        if sample.weights_HW is not None:
            arrays[f"weights {number}"] = sample.weights_HW.numpy()
    facts = {"samples": [_sample_entry(sample) for sample in batch.samples], "scores": batch.scores}
    return _packed(facts | {"resolution": batch.resolution}, arrays)


def read_batch(content: bytes) -> ScoredBatch:
    """What :func:`batch_letter` gave."""
    facts, arrays = _unpacked(content)
    samples = (
        _read_sample(entry, arrays.get(f"mask {number}"), arrays.get(f"weights {number}"))
        for number, entry in enumerate(facts["samples"])
    )
    maps = [arrays[f"map {number}"] for number in range(len(facts["samples"]))]
    scores, leaders_TGK = tuple(facts["scores"]), arrays.get("leaders")
    return ScoredBatch(tuple(samples), maps, scores, leaders_TGK, facts["resolution"])


def class_letter(name: str, scored: ScoredClass | None) -> bytes:
    """A class; None where none of its samples could be read."""
    return json.dumps({"name": name, "scored": None if scored is None else scored_entry(scored)}).encode()


def read_class_letter(content: bytes) -> tuple[str, ScoredClass | None]:
    """What was given to :func:`class_letter`."""
    facts = json.loads(content)
    return facts["name"], None if facts["scored"] is None else read_scored(facts["scored"])


def drawn_letter(drawn: DrawnClass) -> bytes:
    """A class's pictures."""
    arrays: dict[str, NDArray] = {"curves": np.frombuffer(drawn.curves, dtype=np.uint8)}
    if drawn.heat_maps is not None:
        arrays["heat maps"] = np.frombuffer(drawn.heat_maps, dtype=np.uint8)
    facts: dict[str, Any] = {"limits": drawn.limits, "typical": None}
    if drawn.typical is not None:
        facts["typical"], of_sample = _picture_parts(drawn.typical)
        arrays |= of_sample
    return _packed(facts, arrays)


def read_drawn(content: bytes) -> DrawnClass:
    """What :func:`drawn_letter` gave."""
    facts, arrays = _unpacked(content)
    heat_maps = arrays.get("heat maps")
    return DrawnClass(
        curves=arrays["curves"].tobytes(),
        heat_maps=None if heat_maps is None else heat_maps.tobytes(),
        typical=None if facts["typical"] is None else _read_picture(facts["typical"], arrays),
        limits=tuple(facts["limits"]),
    )


def _picture_parts(picture: SamplePicture) -> tuple[dict[str, Any], dict[str, NDArray]]:
    facts = {
        name: getattr(picture, name)
        for name in ("class_name", "key", "defect", "score", "note", "shares", "misaligned")
    }
    facts["images"] = [name for name, _ in picture.images]
    arrays: dict[str, NDArray] = {f"image {place}": image for place, (_, image) in enumerate(picture.images)}
    arrays |= {f"part {place}": part_HW for place, part_HW in enumerate(picture.parts)}
    arrays["map"] = picture.map_HW
    if picture.mask_HW is not None:
        arrays["mask"] = picture.mask_HW
    return facts, arrays


def _read_picture(facts: dict[str, Any], arrays: Mapping[str, NDArray]) -> SamplePicture:
    images = tuple((name, arrays[f"image {place}"]) for place, name in enumerate(facts.pop("images")))
    facts |= {name: tuple(facts[name]) for name in ("shares", "misaligned")}
    parts = tuple(arrays[f"part {place}"] for place in range(len(images)) if f"part {place}" in arrays)
    return SamplePicture(images=images, parts=parts, map_HW=arrays["map"], mask_HW=arrays.get("mask"), **facts)


def _sample_entry(sample: Sample) -> dict[str, Any]:
    return {
        "key": sample.key,
        "dataset": sample.dataset,
        "class_name": sample.class_name,
        "defect": sample.defect,
        "anomalous": sample.anomalous,
        "modalities": sample.modalities,
        "slots": sample.slots,
        "stored_size": sample.stored_size,
        "view": None if sample.view is None else (sample.view.source, sample.view.target, sample.view.size),
        "mask_loss": sample.mask_loss,
        "views": sample.views,
    }


def _read_sample(
    entry: Mapping[str, Any], mask_HW: NDArray[np.bool_] | None, weights_HW: NDArray[np.float32] | None
) -> Sample:
    return Sample(
        key=entry["key"],
        dataset=entry["dataset"],
        class_name=entry["class_name"],
        defect=entry["defect"],
        anomalous=entry["anomalous"],
        modalities=tuple(entry["modalities"]),
        slots=tuple(entry["slots"]),
        images_MCHW=torch.empty(0),
        mask_HW=None if mask_HW is None else torch.from_numpy(mask_HW),
        weights_HW=None if weights_HW is None else torch.from_numpy(weights_HW),
        stored_size=tuple(entry["stored_size"]),
        view=None if entry["view"] is None else _read_view(*entry["view"]),
        mask_loss=MaskLoss(*entry["mask_loss"]),
        views=entry["views"],
    )


def _read_view(source: list[int], target: list[int], size: tuple[int, int]) -> View:
    return View(Box(*source), Box(*target), (size[0], size[1]))


def _packed(facts: Mapping[str, Any], arrays: Mapping[str, NDArray]) -> bytes:
    text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    return save({_FACTS: text, **{name: np.ascontiguousarray(array) for name, array in arrays.items()}})


def _unpacked(content: bytes) -> tuple[dict[str, Any], dict[str, NDArray]]:
    arrays = load(content)
    return json.loads(arrays.pop(_FACTS).tobytes()), arrays
