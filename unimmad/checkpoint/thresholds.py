"""From scores of normal images to a decision: thresholds at a chosen false-alarm rate, for each class and for all.

They lie as ``thresholds.json`` in the checkpoint's folder, since they hold for its weights only. The file holds a
digest of the rest of itself, so that it is whole or not, however often a checkpoint is calibrated.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unimmad.config import Precision
from unimmad.data.index import ClassName, DatasetEntry, Name, rois_of
from unimmad.data.roi import Roi
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.documents import read_json
from unimmad.serialization.text import one_line
from unimmad.serialization.validation import first_problem

THRESHOLDS_NAME = "thresholds.json"
FORMAT: Literal[1] = 1
DEFAULT_FALSE_ALARM_RATE = 0.01
_DIGEST = "sha256"
"""Key of the file's digest; older files have none."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class Threshold(_Frozen):
    """An image is called anomalous where its score is above ``value``."""

    value: float
    """Largest score that is still called normal."""
    images: Annotated[int, Field(gt=0)]
    """Number of normal images that it was taken from."""
    fpr_bound: Annotated[float, Field(ge=0, le=1, alias="promised_rate")]
    """At most this fraction of normal images is called anomalous, on average over sets of calibration images. Files
    call it by its alias."""
    pixel_value: float | None = None
    """Map value above which a pixel counts as anomalous in reports (``metrics.at_threshold``): the mean of the same
    images' maps plus three standard deviations. None where an older version did not write it."""


class ClassThreshold(Threshold):
    """The same for one class."""

    modalities: tuple[str, ...]
    """Modalities of its calibration images; fewer or others have scores of another size."""


class Thresholds(_Frozen):
    """All that ``thresholds.json`` holds."""

    format: Literal[1] = FORMAT
    """Version of the file's format (docs/formats.md)."""
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)]
    """False-alarm rate that was asked for; each threshold's ``fpr_bound`` is what it holds to."""
    classes: dict[ClassName, ClassThreshold]
    """Threshold of each calibrated class, by ``DATASET/CLASS``."""
    all_classes: Threshold
    """For a class that is not known or not given: all classes' scores together."""
    datasets: dict[Name, DatasetEntry]
    """Modalities of each dataset, so that predictions do not need the shards."""
    trained_classes: tuple[ClassName, ...]
    """``DATASET/CLASS`` of all datasets, calibrated or not."""
    precision: Precision | None = None
    """Precision that the scores were computed in; None where an older version did not write it."""

    def precision_note(self, precision: Precision) -> str:
        """What to know of a decision about scores that were computed in ``precision``; empty where nothing."""
        if self.precision in (None, precision):
            return ""
        return f"scored in {precision}, by thresholds of scores in {self.precision}"

    def same_roi(self, class_name: str | None, roi: Roi | None) -> bool:
        """Whether scores of ``roi`` are like those calibrated: of ``DATASET/CLASS``, or where it is None of every
        class that went into the threshold of all."""
        calibrated = rois_of(self.datasets)
        names = self.classes if class_name is None else [class_name]
        return all(calibrated.of(name) == roi for name in names)

    def too_few(self) -> list[str]:
        """The classes whose images can't promise the rate asked for."""
        return [name for name, found in self.classes.items() if found.fpr_bound > self.false_alarm_rate]

    def with_pixel_values(self, of_classes: Mapping[str, float | None], of_all: float | None) -> Thresholds:
        """The same with ``pixel_value`` of each class, by ``DATASET/CLASS``, and of all together."""
        classes = {
            name: found.model_copy(update={"pixel_value": of_classes.get(name)}) for name, found in self.classes.items()
        }
        return self.model_copy(
            update={"classes": classes, "all_classes": self.all_classes.model_copy(update={"pixel_value": of_all})}
        )

    def only(self, dataset: str) -> Thresholds:
        """Without the classes of other datasets; the threshold of all classes stays."""
        inside = f"{dataset}/"
        return self.model_copy(
            update={
                "classes": {name: found for name, found in self.classes.items() if name.startswith(inside)},
                "datasets": {name: entry for name, entry in self.datasets.items() if name == dataset},
                "trained_classes": tuple(name for name in self.trained_classes if name.startswith(inside)),
            }
        )


def conformal_threshold(scores: Sequence[float], false_alarm_rate: float) -> Threshold:
    """The ceil((n + 1)(1 - rate))-th smallest of n normal scores (split conformal prediction's quantile).

    A further normal image, exchangeable with these, lies above it with probability ``false_alarm_rate`` at most.
    With fewer than 1 / rate - 1 scores there is none: then it is the largest, and the bound is 1 / (n + 1).

    Raises:
        ValueError: no score, one that is not finite, or a rate that is not between 0 and 1.
    """
    check_rate(false_alarm_rate)
    if not scores or not all(math.isfinite(score) for score in scores):
        raise ValueError(f"a threshold needs finite scores of normal images; there are {len(scores)}, not all finite")
    count = len(scores)
    # As a fraction, since (n + 1)(1 - 0.05) in floating point can lie just above a whole number.
    rank = min(count, math.ceil((count + 1) * (1 - Fraction(repr(false_alarm_rate)))))
    return Threshold(value=sorted(scores)[rank - 1], images=count, fpr_bound=float(1 - Fraction(rank, count + 1)))


def check_rate(false_alarm_rate: float) -> None:
    """Raise ValueError unless the rate lies between 0 and 1."""
    if not 0 < false_alarm_rate < 1:
        raise ValueError(f"a false-alarm rate of {false_alarm_rate:g} is not possible; choose one between 0 and 1")


def images_needed(false_alarm_rate: float) -> int:
    """How few normal images can promise the rate."""
    return math.ceil(1 / Fraction(repr(false_alarm_rate))) - 1


def make_thresholds(
    scores: Mapping[str, Sequence[float]],
    modalities: Mapping[str, Sequence[str]],
    datasets: Mapping[str, DatasetEntry],
    trained_classes: Sequence[str],
    false_alarm_rate: float,
    precision: Precision | None = None,
) -> Thresholds:
    """Thresholds of every class and of all together.

    Args:
        scores: of the normal images, by ``DATASET/CLASS``.
        modalities: what each class's images consist of.
        datasets: all that the model was trained on.
        trained_classes: all classes of theirs.
        false_alarm_rate: between 0 and 1.
        precision: what the scores were computed in.

    Raises:
        ValueError: as ``conformal_threshold``; names the class.
    """
    classes = {}
    for name, of_class in scores.items():
        try:
            found = conformal_threshold(of_class, false_alarm_rate)
        except ValueError as error:
            raise ValueError(f"class {name}: {error}") from None
        classes[name] = ClassThreshold(**found.model_dump(), modalities=tuple(modalities[name]))
    return Thresholds(
        false_alarm_rate=false_alarm_rate,
        classes=classes,
        all_classes=conformal_threshold(
            [score for of_class in scores.values() for score in of_class], false_alarm_rate
        ),
        datasets=dict(datasets),
        trained_classes=tuple(trained_classes),
        precision=precision,
    )


def save_thresholds(thresholds: Thresholds, checkpoint: Path) -> Path:
    """Write ``thresholds.json`` into a checkpoint's folder; returns the file.

    Raises:
        ValueError: the folder cannot be written to.
    """
    path = checkpoint / THRESHOLDS_NAME
    values = thresholds.model_dump(mode="json", by_alias=True)
    write_text_aside(path, json.dumps({_DIGEST: _digest(values), **values}, indent=2) + "\n")
    return path


def load_thresholds(checkpoint: Path) -> Thresholds | None:
    """A checkpoint's thresholds; None where it was never calibrated.

    Raises:
        ValueError: the file is damaged, altered or of another form.
    """
    path = checkpoint / THRESHOLDS_NAME
    if not path.is_file():
        return None
    remedy = "calibrate again, or remove it"
    try:
        values = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path}: {one_line(error)}; {remedy}") from None
    digest = values.pop(_DIGEST, None) if isinstance(values, dict) else None
    if digest not in (None, _digest(values)):
        raise ValueError(
            f"{path}: it is not what calibration wrote: damaged, or altered; {remedy}; where it was changed on "
            f"purpose, remove the entry {_DIGEST!r} from it"
        )
    try:
        return Thresholds.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise ValueError(f"{path}: {first_problem(error)}; {remedy}") from None


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
