"""What calibration images were like, so that a change of later ones can be seen: ``monitoring.safetensors``.

It lies in the checkpoint's folder, beside the thresholds and written with them, since it holds for its weights only.
Per class and set of modalities it has the distribution of scores, per class and modality those of a few plain
statistics of the images. Half of a class's images, chosen by name, tell what is usual (mean picture; mean and
deviation of the teacher's pooled features); the other half are compared with that as later images will be, so that
they are alike in everything but time.

Letters: F pooled features, S x S pixels of a small picture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from unimmad.serialization.atomic_write import write_aside
from unimmad.serialization.documents import parse_json
from unimmad.serialization.text import one_line
from unimmad.serialization.validation import Entry, validated

MONITORING_NAME = "monitoring.safetensors"
FORMAT: Literal[1] = 1
STATISTICS = ("brightness", "contrast", "sharpness", "noise", "moved_down", "moved_right", "features")
"""Of an image, see ``evaluation.image_statistics``; the last three are found by what is usual of its class. A statistic
that is found in another way gets another name, so that it is not compared with what an older calibration kept."""
SMALL = 64
"""S."""
_ID_DIGITS = 16


class Values(Entry):
    """A distribution: values of a fixed grid, rising, and how often each was there."""

    values: list[float]
    counts: list[Annotated[int, Field(gt=0)]]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.values) != len(self.counts) or self.values != sorted(set(self.values)):
            raise ValueError("values must rise, each with its count")
        return self

    @property
    def by_value(self) -> dict[float, int]:
        return dict(zip(self.values, self.counts, strict=True))


class ScoreSet(Entry):
    """Scores of one class's images of the same modalities."""

    class_name: str
    """``DATASET/CLASS``."""
    modalities: list[str]
    scores: Values
    """Those below the class's threshold, with which later ones that are called normal are compared."""


class ImageSet(Entry):
    """One modality's images of one class."""

    class_name: str
    modality: str
    images: int
    """Number of images."""
    usual_of: int
    """How many of them what is usual was taken from."""
    statistics: dict[str, Values]
    """By name, of ``STATISTICS``; those that need what is usual are of the other images only."""


class Described(Entry):
    """All of the file but its arrays."""

    format: Literal[1] = FORMAT
    weights: str
    """Digest of the checkpoint's weights."""
    scores: list[ScoreSet]
    images: list[ImageSet]


@dataclass(frozen=True)
class Usual:
    """What a class's images of one modality usually show."""

    picture_SS: NDArray[np.float32]
    """Their mean, small and gray."""
    mean_F: NDArray[np.float32]
    """Of the teacher's features, averaged over an image; F is 0 where the method has no teacher."""
    deviation_F: NDArray[np.float32]


@dataclass(frozen=True)
class MonitoringReference:
    """All of the file."""

    described: Described
    usual: Mapping[tuple[str, str], Usual] = field(default_factory=dict)
    """By class and modality."""

    @cached_property
    def digest(self) -> str:
        """What predictions name it by: another one has another."""
        found = hashlib.sha256(_text(self.described).encode())
        for name, array in sorted(_arrays(self.usual).items()):
            found.update(f"{name} {array.shape}".encode() + array.tobytes())
        return found.hexdigest()[:_ID_DIGITS]

    def without(self, class_name: str) -> MonitoringReference:
        """The same without one class."""
        described = self.described
        kept: dict[str, list[ScoreSet] | list[ImageSet]] = {
            "scores": [one for one in described.scores if one.class_name != class_name],
            "images": [one for one in described.images if one.class_name != class_name],
        }
        usual = {key: found for key, found in self.usual.items() if key[0] != class_name}
        return MonitoringReference(described.model_copy(update=kept), usual)

    def without_scores(self, classes: Collection[str]) -> MonitoringReference:
        """The same without the scores of some classes, whose later ones are then compared with each other alone."""
        nothing = Values(values=[], counts=[])
        scores = [
            one.model_copy(update={"scores": nothing}) if one.class_name in classes else one
            for one in self.described.scores
        ]
        return MonitoringReference(self.described.model_copy(update={"scores": scores}), self.usual)

    def as_bytes(self) -> bytes:
        """What the file holds."""
        return save(_arrays(self.usual), {"reference": _text(self.described), "digest": self.digest})

    @cached_property
    def classes(self) -> frozenset[str]:
        """``DATASET/CLASS`` of all that were calibrated."""
        return frozenset(one.class_name for one in self.described.images)


def save_reference(reference: MonitoringReference, checkpoint: Path) -> Path:
    """Write ``monitoring.safetensors`` into a checkpoint's folder; returns the file.

    Raises:
        ValueError: the folder cannot be written to.
    """
    path = checkpoint / MONITORING_NAME
    write_aside(path, lambda temporary: temporary.write_bytes(reference.as_bytes()))
    return path


def load_reference(checkpoint: Path) -> MonitoringReference | None:
    """What calibration wrote there; None where it wrote nothing.

    Raises:
        ValueError: the file is damaged or of another form.
    """
    path, remedy = checkpoint / MONITORING_NAME, "calibrate again, or remove it"
    if not path.is_file():
        return None
    try:
        with safe_open(path, "np") as opened:
            metadata = opened.metadata() or {}
            names: list[str] = opened.keys()
            arrays = {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: {one_line(error)}; {remedy}") from None
    described = validated(_SCHEMA, parse_json(metadata.get("reference", "null"), str(path)), str(path), remedy)
    reference = MonitoringReference(described, _usual(described.images, arrays))
    fits = all(map(_is_usual, reference.usual.values()))
    if not fits or reference.digest != metadata.get("digest"):
        raise ValueError(f"{path}: it is not what calibration wrote: damaged, or altered; {remedy}")
    return reference


def _is_usual(usual: Usual) -> bool:
    """Whether the arrays are such as images can be compared with."""
    arrays = (usual.picture_SS, usual.mean_F, usual.deviation_F)
    shapes = ((SMALL, SMALL), (usual.mean_F.size,), (usual.mean_F.size,))
    alike = all(array.shape == shape and array.dtype == np.float32 for array, shape in zip(arrays, shapes, strict=True))
    return alike and all(np.isfinite(array).all() for array in arrays) and bool((usual.deviation_F > 0).all())


def _text(described: Described) -> str:
    return json.dumps(described.model_dump(mode="json"), sort_keys=True)


def _arrays(usual: Mapping[tuple[str, str], Usual]) -> dict[str, NDArray[np.float32]]:
    return {
        f"{class_name}/{modality}/{what}": np.ascontiguousarray(array, dtype=np.float32)
        for (class_name, modality), one in usual.items()
        for what, array in (("picture", one.picture_SS), ("mean", one.mean_F), ("deviation", one.deviation_F))
    }


def _usual(images: Sequence[ImageSet], arrays: Mapping[str, NDArray]) -> dict[tuple[str, str], Usual]:
    """Those that are there: a class of few images may have none."""
    found = {}
    for one in images:
        parts = [arrays.get(f"{one.class_name}/{one.modality}/{what}") for what in ("picture", "mean", "deviation")]
        if parts[0] is not None and parts[1] is not None and parts[2] is not None:
            found[one.class_name, one.modality] = Usual(parts[0], parts[1], parts[2])
    return found


_SCHEMA: TypeAdapter[Described] = TypeAdapter(Described)
