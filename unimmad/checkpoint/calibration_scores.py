"""The scores that thresholds were taken from: ``calibration_scores.json``, beside them in the checkpoint's folder.

Feedback needs them to take thresholds again with the scores of further images. They hold for one ``thresholds.json``,
which the file names by a digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from unimmad.checkpoint.thresholds import Sensors, Thresholds, thresholds_digest
from unimmad.data.index import ClassName
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.documents import read_json
from unimmad.serialization.validation import Entry, validated

SCORES_NAME = "calibration_scores.json"
FORMAT: Literal[1] = 1
Scores = Mapping[str, Mapping[Sensors, list[float]]]
"""Of normal images, by ``DATASET/CLASS`` and then by what the images consist of."""


class _ScoresOfSet(Entry):
    modalities: list[str]
    scores: list[float]


class _Content(Entry):
    format: Literal[1] = FORMAT
    thresholds: str
    """Digest of the thresholds that were taken from them."""
    classes: dict[ClassName, list[_ScoresOfSet]]
    sha256: str = ""
    """Of all the rest."""

    def digest(self) -> str:
        values = self.model_dump(mode="json", exclude={"sha256"})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def scores_by_class(found: Iterable[tuple[str, Sensors, float]]) -> dict[str, dict[Sensors, list[float]]]:
    """Class, modalities and score of each image, put in order."""
    scores: dict[str, dict[Sensors, list[float]]] = {}
    for class_name, sensors, score in found:
        scores.setdefault(class_name, {}).setdefault(sensors, []).append(score)
    return scores


def save_scores(scores: Scores, thresholds: Thresholds, checkpoint: Path) -> Path:
    """Write ``calibration_scores.json`` into a checkpoint's folder; returns the file.

    Raises:
        ValueError: the folder cannot be written to.
    """
    path = checkpoint / SCORES_NAME
    classes = {
        name: [_ScoresOfSet(modalities=list(sensors), scores=of_set) for sensors, of_set in by_sensors.items()]
        for name, by_sensors in scores.items()
    }
    content = _Content(thresholds=thresholds_digest(thresholds), classes=classes)
    whole = content.model_copy(update={"sha256": content.digest()})
    write_text_aside(path, json.dumps(whole.model_dump(mode="json")) + "\n")
    return path


def load_scores(checkpoint: Path, thresholds: Thresholds) -> dict[str, dict[Sensors, list[float]]]:
    """The scores that these thresholds were taken from.

    Raises:
        ValueError: there are none, they are of other thresholds, or the file is damaged.
    """
    path, remedy = checkpoint / SCORES_NAME, "calibrate again (unimmad calibrate)"
    if not path.is_file():
        raise ValueError(f"{path} is not there: an earlier version calibrated, and kept no scores; {remedy}")
    content = validated(_SCHEMA, read_json(path), str(path), remedy)
    if content.sha256 != content.digest():
        raise ValueError(f"{path}: it is not what calibration wrote: damaged, or altered; {remedy}")
    if content.thresholds != thresholds_digest(thresholds):
        raise ValueError(f"{path}: it is of other thresholds than those beside it; {remedy}")
    return {
        name: {tuple(one.modalities): list(one.scores) for one in of_class if one.scores}
        for name, of_class in content.classes.items()
    }


_SCHEMA: TypeAdapter[_Content] = TypeAdapter(_Content)
