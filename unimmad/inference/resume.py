"""Which samples an interrupted prediction has done: those of the same model, the same words and the same files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unimmad.inference.detector import Detector
from unimmad.inference.inputs import InputSample

_DIGITS = 16


def prediction_fingerprint(detector: Detector, settings: Mapping[str, Any]) -> str:
    """A number for one prediction: two have the same one only where they give the same results for the same files.

    Args:
        detector: by its weights, modalities, thresholds and precision.
        settings: everything else that changes what is written; of JSON's types.
    """
    thresholds = detector.thresholds
    parts = [
        detector.model_digest,
        detector.engine.precision,
        {name: entry.model_dump(mode="json") for name, entry in detector.catalogue.datasets.items()},
        detector.catalogue.classes,
        *_rois(detector),
        None if thresholds is None else thresholds.model_dump(mode="json", by_alias=True),
        None if detector.normal_maps is None else detector.normal_maps.model_dump(mode="json"),
        settings,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def sample_fingerprints(samples: Iterable[InputSample], prediction: str) -> dict[str, str]:
    """By sample name: a number that changes with the prediction's and with the files' places, sizes and times."""
    return {sample.name: _fingerprint(sample, prediction) for sample in samples}


def _rois(detector: Detector) -> list[Any]:
    """Those given in place of the datasets'."""
    given = detector.catalogue.given_rois
    if given is None:
        return []
    of_all = None if given.of_all is None else given.of_all.digest
    return [{name: roi.digest for name, roi in given.of_classes.items()}, of_all]


def _fingerprint(sample: InputSample, prediction: str) -> str:
    images = sample.images if isinstance(sample.images, Mapping) else {"": sample.images}
    files = []
    for modality, image in images.items():
        assert isinstance(image, Path | str), "neither arrays nor bytes have a file to be known by"
        files.append([modality, str(image), *_size_and_time(Path(image))])
    return hashlib.sha256(json.dumps([prediction, sample.name, files]).encode()).hexdigest()[:_DIGITS]


def _size_and_time(path: Path) -> tuple[int, ...]:
    """Empty where there is no such file: reading it will say so."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns
