"""Measures images for the monitor: calibration's, of which a reference is made, and later ones, which are compared.

Letters: M modalities of a sample, T tokens (sample, modality), C = 3 channels, H x W pixels, F pooled features.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unimmad.checkpoint.monitoring import (
    STATISTICS,
    Described,
    ImageSet,
    MonitoringReference,
    ScoreSet,
    Usual,
    Values,
)
from unimmad.checkpoint.thresholds import Sensors, Thresholds
from unimmad.data.index import DatasetEntry, Modality
from unimmad.data.prepare import normalisation
from unimmad.data.sample import Batch, Sample
from unimmad.data.views import View
from unimmad.evaluation.image_statistics import ImageFacts, image_facts, pooled_features
from unimmad.inference.engines import Engine, ModelEngine
from unimmad.inference.reading import PreparedSample, normalised_images
from unimmad.monitoring.evidence import on_grid

FEWEST_USUAL = 2
"""Images that tell what is usual, at least."""
_FLOOR = 0.1
"""Share of all features' mean variance that is added to each one's: a few images say little of one feature."""

Facts = dict[str, ImageFacts]
"""Of one sample, by modality."""


class CalibrationFacts(NamedTuple):
    """What is kept of one calibration image until the reference is made."""

    class_name: str
    key: str
    modalities: Sensors
    score: float
    images: Facts
    digest: str = ""
    """``reading.pixels_digest``."""


def facts_of_prepared(engine: ModelEngine, samples: Sequence[PreparedSample]) -> list[Facts]:
    """Of samples that prediction reads, before they are cut into views."""
    seen = [
        _Seen(sample.modalities, *_outline(engine, sample))  # what is scored, as one piece
        for sample in samples
    ]
    return _facts(engine, seen)


def compared_with(
    reference: MonitoringReference | None, engine: Engine, samples: Sequence[PreparedSample]
) -> list[dict[str, dict[str, float]] | None]:
    """See ``Prediction.statistics``; of several images at once. None of samples whose class ``reference`` lacks."""
    if reference is None or not isinstance(engine, ModelEngine):
        return [None] * len(samples)
    known = [sample for sample in samples if sample.match.class_name in reference.classes]
    measured = iter(facts_of_prepared(engine, known) if known else ())
    found: list[dict[str, dict[str, float]] | None] = []
    for sample in samples:
        name = sample.match.class_name
        if name not in reference.classes or name is None:
            found.append(None)
            continue
        facts = next(measured)
        found.append({key: one.compared(reference.usual.get((name, key))) for key, one in facts.items()})
    return found


def facts_of_batch(engine: ModelEngine, batch: Batch, datasets: Mapping[str, DatasetEntry]) -> list[Facts]:
    """Of samples that were read from shards, as ``evaluation_rounds`` gives them."""
    tokens = [None] * batch.size if engine.geometry.tiles else batch.images_TCHW.split(list(batch.tokens_per_sample))
    seen = []
    for sample, images_MCHW in zip(batch.samples, tokens, strict=True):
        by_name = {modality.name: modality for modality in datasets[sample.dataset].modalities}
        modalities = tuple(by_name[name] for name in sample.modalities)
        seen.append(_Seen(modalities, *_stored_outline(engine, sample, images_MCHW)))
    return _facts(engine, seen)


class _Seen(NamedTuple):
    modalities: tuple[Modality, ...]
    images_MCHW: Tensor
    """Normalised."""
    view: View | None


def _outline(engine: ModelEngine, sample: PreparedSample) -> tuple[Tensor, View]:
    if len(sample.views) == 1:
        return normalised_images(sample.images_MCHW, sample.modalities), sample.views[0]
    outline = engine.geometry.outline(sample.size, engine.image_size)
    return normalised_images(sample.seen(outline), sample.modalities), outline


def _stored_outline(engine: ModelEngine, sample: Sample, images_MCHW: Tensor | None) -> tuple[Tensor, View | None]:
    if images_MCHW is not None:
        return images_MCHW, sample.view
    assert sample.stored is not None, "tiles are cut from stored images"
    outline = engine.geometry.outline(sample.stored.size, engine.image_size)
    return sample.stored.seen(outline), outline


def _facts(engine: ModelEngine, seen: Sequence[_Seen]) -> list[Facts]:
    images_TCHW = torch.cat([sample.images_MCHW for sample in seen])
    features_TF = pooled_features(engine.model, images_TCHW.to(engine.device))
    of_samples = np.split(features_TF, np.cumsum([len(sample.modalities) for sample in seen])[:-1])
    return [
        {
            modality.name: image_facts(_without_padding(image_CHW, modality, sample.view), features_F)
            for modality, image_CHW, features_F in zip(sample.modalities, sample.images_MCHW, features_MF, strict=True)
        }
        for sample, features_MF in zip(seen, of_samples, strict=True)
    ]


def _without_padding(image_CHW: Tensor, modality: Modality, view: View | None) -> Tensor:
    """In the modality's own values."""
    mean_C11, deviation_C11 = (torch.tensor(values)[:, None, None] for values in normalisation(modality.kind))
    shown_CHW = image_CHW if view is None else image_CHW[(slice(None), *view.target.pixels)]
    return shown_CHW * deviation_C11 + mean_C11


def made_reference(
    facts: Iterable[CalibrationFacts], thresholds: Thresholds, weights_digest: str
) -> MonitoringReference:
    """What later images will be compared with.

    Args:
        facts: of all calibration images, in any order.
        thresholds: taken from the same images.
        weights_digest: of the checkpoint.
    """
    ordered = sorted(facts, key=lambda one: (one.class_name, one.key))
    scores: dict[tuple[str, Sensors], list[float]] = {}
    images: dict[tuple[str, str], list[tuple[str, ImageFacts]]] = {}
    for one in ordered:
        threshold = thresholds.of_class(one.class_name, one.modalities)
        of_set = scores.setdefault((one.class_name, one.modalities), [])
        if threshold is None or one.score < threshold.value:  # later ones are those called normal, too
            of_set.append(one.score)
        for modality, found in one.images.items():
            images.setdefault((one.class_name, modality), []).append((one.key, found))
    usual = {key: _usual([found for name, found in of_set if tells_usual(name)]) for key, of_set in images.items()}
    described = Described(
        weights=weights_digest,
        scores=[
            ScoreSet(class_name=class_name, modalities=list(sensors), scores=as_values(of_set))
            for (class_name, sensors), of_set in scores.items()
        ],
        images=[_image_set(*key, of_set, usual[key]) for key, of_set in images.items()],
    )
    return MonitoringReference(described, {key: found for key, found in usual.items() if found is not None})


def tells_usual(key: str) -> bool:
    """Half of the images, by a rule that neither looks at them nor at how many there are."""
    return hashlib.sha256(key.encode()).digest()[0] % 2 == 0


def _image_set(
    class_name: str, modality: str, found: Sequence[tuple[str, ImageFacts]], usual: Usual | None
) -> ImageSet:
    of_all = [facts.compared(None) for _, facts in found]
    of_others = [] if usual is None else [facts.compared(usual) for key, facts in found if not tells_usual(key)]
    statistics = {}
    for name in STATISTICS:
        plain = [one[name] for one in of_all if name in one]
        if plain or any(name in one for one in of_others):
            statistics[name] = as_values(plain or [one[name] for one in of_others])
    return ImageSet(
        class_name=class_name,
        modality=modality,
        images=len(found),
        usual_of=0 if usual is None else len(found) - len(of_others),
        statistics=statistics,
    )


def _usual(found: Sequence[ImageFacts]) -> Usual | None:
    """None of too few."""
    if len(found) < FEWEST_USUAL:
        return None
    features_NF = np.stack([facts.features_F for facts in found]).astype(np.float64)
    variance_F = features_NF.var(axis=0, ddof=1)
    floor = _FLOOR * variance_F.mean() if variance_F.size else 0.0
    deviation_F = np.sqrt(variance_F + floor + 1e-12)
    picture_SS = np.stack([facts.picture_SS for facts in found]).mean(axis=0, keepdims=True)[0]
    return Usual(
        picture_SS.astype(np.float32),
        features_NF.mean(axis=0, keepdims=True)[0].astype(np.float32),
        deviation_F.astype(np.float32),
    )


def as_values(found: Iterable[float]) -> Values:
    """A distribution on the grid of ``Bag``."""
    counts = sorted(Counter(map(on_grid, found)).items())
    return Values(values=[value for value, _ in counts], counts=[count for _, count in counts])
