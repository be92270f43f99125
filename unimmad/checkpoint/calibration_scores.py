"""The scores that thresholds were taken from: ``calibration_scores.json``, beside them in the checkpoint's folder.

Feedback needs them to take thresholds again with the scores of further images. Those of a class hold for its threshold
in one ``thresholds.json``, which the file names by a digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, TypeAdapter

from unimmad.checkpoint.thresholds import Sensors, Thresholds
from unimmad.data.index import ClassName
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.documents import read_json
from unimmad.serialization.validation import Entry, validated

SCORES_NAME = "calibration_scores.json"
FORMAT: Literal[1] = 1
Scores = Mapping[str, Mapping[Sensors, list[float]]]
"""Of normal images, by ``DATASET/CLASS`` and then by what the images consist of."""
Digests = Mapping[str, Mapping[Sensors, list[str]]]
REMEDY = "calibrate again (unimmad calibrate)"
T = TypeVar("T")


class _ScoresOfSet(Entry):
    modalities: list[str]
    scores: list[float]
    digests: list[str] = Field(default_factory=list)
    """Of the same images' pixels, sorted."""


class _Content(Entry):
    format: Literal[1] = FORMAT
    thresholds: dict[ClassName, str]
    """Digest of the threshold of each class that was taken from them."""
    classes: dict[ClassName, list[_ScoresOfSet]]
    sha256: str = ""
    """Of all the rest."""

    def digest(self) -> str:
        values = self.model_dump(mode="json", exclude={"sha256"})
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def by_class(found: Iterable[tuple[str, Sensors, T]]) -> dict[str, dict[Sensors, list[T]]]:
    """Class, modalities and score (or whatever else) of each image, put in order."""
    ordered: dict[str, dict[Sensors, list[T]]] = {}
    for class_name, sensors, of_image in found:
        ordered.setdefault(class_name, {}).setdefault(sensors, []).append(of_image)
    return ordered


def save_scores(scores: Scores, thresholds: Thresholds, checkpoint: Path, digests: Digests | None = None) -> Path:
    """Write ``calibration_scores.json`` into a checkpoint's folder; returns the file.

    Args:
        scores: of the calibration images.
        thresholds: that were taken from them.
        checkpoint: its folder.
        digests: of the same images' pixels; None: not known.

    Raises:
        ValueError: the folder cannot be written to.
    """
    classes = {
        name: [
            _ScoresOfSet(
                modalities=list(sensors),
                scores=of_set,
                digests=sorted((digests or {}).get(name, {}).get(sensors, [])),
            )
            for sensors, of_set in by_sensors.items()
        ]
        for name, by_sensors in scores.items()
    }
    return _save(
        _Content(thresholds={name: _digest(thresholds, name) for name in classes}, classes=classes), checkpoint
    )


def forget_scores(checkpoint: Path, class_name: str) -> None:
    """Remove those of one class, where there are any.

    Raises:
        ValueError: the file is damaged, or can't be written.
    """
    if not (checkpoint / SCORES_NAME).is_file():
        return
    content = _read(checkpoint)
    classes = {name: of_class for name, of_class in content.classes.items() if name != class_name}
    _save(content.model_copy(update={"classes": classes}), checkpoint)


def load_scores(checkpoint: Path, thresholds: Thresholds) -> dict[str, dict[Sensors, list[float]]]:
    """The scores that these thresholds were taken from.

    Raises:
        ValueError: there are none, they are of other thresholds, or the file is damaged.
    """
    content = _read(checkpoint)
    if any(content.thresholds.get(name) != _digest(thresholds, name) for name in content.classes):
        raise ValueError(f"{checkpoint / SCORES_NAME}: it is of other thresholds than those beside it; {REMEDY}")
    return {
        name: {tuple(one.modalities): list(one.scores) for one in of_class if one.scores}
        for name, of_class in content.classes.items()
    }


def calibrated_digests(checkpoint: Path) -> set[str]:
    """Of the pixels of the calibration images.

    Raises:
        ValueError: there are no scores, or the file is damaged.
    """
    return {digest for of_class in _read(checkpoint).classes.values() for one in of_class for digest in one.digests}


def _read(checkpoint: Path) -> _Content:
    path = checkpoint / SCORES_NAME
    if not path.is_file():
        raise ValueError(f"{path} is not there: an earlier version calibrated, and kept no scores; {REMEDY}")
    content = validated(_SCHEMA, read_json(path), str(path), REMEDY)
    if content.sha256 != content.digest():
        raise ValueError(f"{path}: it is not what calibration wrote: damaged, or altered; {REMEDY}")
    return content


def _save(content: _Content, checkpoint: Path) -> Path:
    path = checkpoint / SCORES_NAME
    whole = content.model_copy(update={"sha256": content.digest()})
    write_text_aside(path, json.dumps(whole.model_dump(mode="json")) + "\n")
    return path


def _digest(thresholds: Thresholds, class_name: str) -> str:
    """Empty of a class without a threshold."""
    found = thresholds.classes.get(class_name)
    return "" if found is None else hashlib.sha256(found.model_dump_json(by_alias=True).encode()).hexdigest()


_SCHEMA: TypeAdapter[_Content] = TypeAdapter(_Content)
