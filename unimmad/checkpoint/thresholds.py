"""From scores of normal images to a decision: thresholds at a chosen false-alarm rate, for each class and for all.

They lie as ``thresholds.json`` in the checkpoint's folder, since they hold for its weights only. The file holds a
digest of the rest of itself, so that it is whole or not, however often a checkpoint is calibrated.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unimmad.config import Precision, TileSettings
from unimmad.data.index import ClassName, DatasetEntry, Name, rois_of
from unimmad.data.roi import Roi
from unimmad.metrics.at_threshold import Spread
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.documents import read_json
from unimmad.serialization.text import one_line
from unimmad.serialization.validation import first_problem

THRESHOLDS_NAME = "thresholds.json"
FORMAT: Literal[1] = 1
DEFAULT_FALSE_ALARM_RATE = 0.01
_DIGEST = "sha256"
"""Key of the file's digest; older files have none."""
TIES: dict[Precision, float] = {"fp32": 1e-5, "bf16": 2**-8}
"""Scores that differ by less than this share of them are equal: so much may another batch size change them."""
Sensors = tuple[str, ...]
"""Names of the modalities that an image consists of."""


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


class SensorThreshold(Threshold):
    """The same for images of exactly these modalities."""

    modalities: Sensors
    """Modalities of its calibration images; fewer or others have scores of another size."""
    usual: float | None = None
    """Median over its calibration images of their maps' medians, the dark end of pictures' colours; None: not known."""
    typical: float | None = None
    """Median of its calibration images' scores, by which a class added later borrows it; None: not known."""
    edge_gain: float | None = None
    """``data.edges.usual_gain`` of its calibration images, beyond which modalities are perhaps misaligned; None: not
    known."""


AnySensors = TypeVar("AnySensors", bound=SensorThreshold)


class ClassThreshold(SensorThreshold):
    """The same for one class, by the modalities that most of its calibration images have."""

    sets: tuple[SensorThreshold, ...] = ()
    """Of its calibration images with other modalities, each set for itself."""


class Thresholds(_Frozen):
    """All that ``thresholds.json`` holds."""

    format: Literal[1] = FORMAT
    """Version of the file's format (docs/formats.md)."""
    false_alarm_rate: Annotated[float, Field(gt=0, lt=1)]
    """False-alarm rate that was asked for; each threshold's ``fpr_bound`` is what it holds to."""
    classes: dict[ClassName, ClassThreshold]
    """Threshold of each calibrated class, by ``DATASET/CLASS``."""
    all_classes: Threshold
    """All classes' scores together; decides where ``sensor_sets`` says nothing."""
    datasets: dict[Name, DatasetEntry]
    """Modalities of each dataset, so that predictions do not need the shards."""
    trained_classes: tuple[ClassName, ...]
    """``DATASET/CLASS`` of all datasets, calibrated or not."""
    precision: Precision | None = None
    """Precision that the scores were computed in; None where an older version did not write it."""
    sensor_sets: tuple[SensorThreshold, ...] = ()
    """For a class that is not known or not given: all classes' scores together, each set of modalities for itself.
    Files of older versions have none."""
    tiles: TileSettings | None = None
    """By which the images were scored; None where an older version did not write it: the checkpoint's own."""

    def tiles_note(self, used: TileSettings, own: TileSettings) -> str:
        """Why no threshold holds for scores of ``used`` tiles, where the checkpoint's ``own`` are those; empty where
        they do."""
        calibrated = self.tiles or own
        if calibrated.same_views(used):
            return ""
        return f"no threshold holds for {used.in_words()}: calibrated by {calibrated.in_words()}; calibrate with these"

    def of_class(self, name: str, modalities: Sequence[str]) -> Threshold | None:
        """The threshold of a calibrated class for images of exactly these modalities; None where it has none."""
        own = self.classes[name]
        return _of_sensors((own, *own.sets), modalities)

    def of_all(self, modalities: Sequence[str]) -> Threshold | None:
        """The threshold of all classes for images of exactly these modalities; None where there is none."""
        return _of_sensors(self.sensor_sets, modalities) if self.sensor_sets else self.all_classes

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
        return [
            name
            for name, found in self.classes.items()
            if any(part.fpr_bound > self.false_alarm_rate for part in (found, *found.sets))
        ]

    def without_images(self) -> list[str]:
        """The trained classes that no calibration image was of: the threshold of all promises them nothing."""
        return [name for name in self.trained_classes if name not in self.classes]

    def with_pixel_values(self, spreads: Mapping[str, Mapping[Sensors, Spread]]) -> Thresholds:
        """The same with every ``pixel_value``, from the spreads of the normal images' maps.

        ``spreads`` are by ``DATASET/CLASS`` and then by what the images consist of, as the scores were.
        """
        pooled = [item for by_sensors in spreads.values() for item in by_sensors.items()]
        classes = {}
        for name, found in self.classes.items():
            own = list(spreads.get(name, {}).items())
            sets = tuple(_with_pixel_value(part, own) for part in found.sets)
            classes[name] = _with_pixel_value(found, own).model_copy(update={"sets": sets})
        of_all = {"pixel_value": _pixel_value(spread for _, spread in pooled)}
        return self.model_copy(
            update={
                "classes": classes,
                "all_classes": self.all_classes.model_copy(update=of_all),
                "sensor_sets": tuple(_with_pixel_value(part, pooled) for part in self.sensor_sets),
            }
        )

    def with_edge_gains(self, gains: Mapping[str, Mapping[Sensors, float | None]]) -> Thresholds:
        """The same with every ``edge_gain``, of each set's images. ``gains`` are by ``DATASET/CLASS`` and then
        by what the images consist of."""
        pooled = [item for by_sensors in gains.values() for item in by_sensors.items()]
        classes = {}
        for name, found in self.classes.items():
            own = list(gains.get(name, {}).items())
            sets = tuple(_with_gain(part, own) for part in found.sets)
            classes[name] = _with_gain(found, own).model_copy(update={"sets": sets})
        sensor_sets = tuple(_with_gain(part, pooled) for part in self.sensor_sets)
        return self.model_copy(update={"classes": classes, "sensor_sets": sensor_sets})

    def with_sets_of(self, other: Thresholds) -> Thresholds:
        """The same, and those of ``other`` for sets of modalities that a class, or all together, has none for. Where
        both have one, a class's is that of more images, and that of all together the larger: each of the two may be of
        other classes."""
        classes = {
            name: _with_sets_of(found, other.classes[name]) if name in other.classes else found
            for name, found in self.classes.items()
        }
        theirs = [(one, _of_sensors(other.sensor_sets, one.modalities)) for one in self.sensor_sets]
        known = [one if same is None else _covering(one, same) for one, same in theirs]
        new = [one for one in other.sensor_sets if _of_sensors(self.sensor_sets, one.modalities) is None]
        return self.model_copy(update={"classes": classes, "sensor_sets": (*known, *new)})

    def only(self, dataset: str, without: Collection[str] = ()) -> Thresholds | None:
        """Those of one dataset, without some classes; None where none that is left is calibrated.

        Where other classes went into the threshold of all classes, it becomes the largest of the dataset's own: the
        scores, of which a quantile could be taken, are not kept, and no class has more false alarms by that.
        """
        inside = f"{dataset}/"
        names = [name for name in (*self.classes, *self.trained_classes) if name.startswith(inside)]
        left = [name for name in names if name not in without]
        classes = {name: found for name, found in self.classes.items() if name in left}
        if not classes:
            return None
        kept = self.model_copy(
            update={
                "classes": classes,
                "datasets": {name: entry for name, entry in self.datasets.items() if name == dataset},
                "trained_classes": tuple(name for name in self.trained_classes if name in left),
            }
        )
        return kept if len(classes) == len(self.classes) else kept.pooled_again()

    def without(self, name: str) -> Thresholds | None:
        """Those of all classes but ``DATASET/CLASS``; None where none that is left is calibrated. Where the class was
        calibrated, the threshold of all classes becomes one that no score of its own is in, as ``only`` makes it."""
        classes = {other: found for other, found in self.classes.items() if other != name}
        if not classes:
            return None
        trained = tuple(other for other in self.trained_classes if other != name)
        kept = self.model_copy(update={"classes": classes, "trained_classes": trained})
        return kept if name not in self.classes else kept.pooled_again()

    def pooled_again(self) -> Thresholds:
        """With a threshold of all classes that calls normal what any class's own does."""
        parts = [part for found in self.classes.values() for part in (found, *found.sets)]
        sets = dict.fromkeys(tuple(sorted(part.modalities)) for part in parts) if self.sensor_sets else {}
        of_sets = [[part for part in parts if tuple(sorted(part.modalities)) == sensors] for sensors in sets]
        return self.model_copy(
            update={
                "all_classes": Threshold(**_largest(parts)),
                "sensor_sets": tuple(_largest_of_sensors(alike) for alike in of_sets),
            }
        )


def is_above(score: float, threshold: float, precision: Precision) -> bool:
    """Whether a score is above a threshold by more than what another batch size may change of it."""
    return score > highest_normal(threshold, precision)


def highest_normal(threshold: float, precision: Precision) -> float:
    """The largest score that is called normal: the threshold, and beyond it what another batch size may change."""
    return threshold + TIES[precision] * abs(threshold)


def _with_sets_of(found: ClassThreshold, other: ClassThreshold) -> ClassThreshold:
    parts = [_plain(part) for part in (found, *found.sets)]
    of_other = [_plain(part) for part in (other, *other.sets)]
    theirs = [(part, _of_sensors(of_other, part.modalities)) for part in parts]
    most, *sets = [part if same is None or part.images >= same.images else same for part, same in theirs]
    new = [part for part in of_other if _of_sensors(parts, part.modalities) is None]
    return ClassThreshold(**most.model_dump(), sets=(*sets, *new))


def _plain(part: SensorThreshold) -> SensorThreshold:
    return SensorThreshold(**part.model_dump(exclude={"sets"}))


def _covering(known: SensorThreshold, other: SensorThreshold) -> SensorThreshold:
    """One that calls normal what either does: ``known`` itself where it does already."""
    largest = _largest_of_sensors((known, other))
    own = {"value", "fpr_bound", "pixel_value", "edge_gain"}
    return known if largest.model_dump(include=own) == known.model_dump(include=own) else largest


def _of_sensors(found: Iterable[SensorThreshold], modalities: Sequence[str]) -> SensorThreshold | None:
    return next((one for one in found if set(one.modalities) == set(modalities)), None)


def _largest(found: Sequence[Threshold]) -> dict[str, Any]:
    """The values of a threshold that calls normal what any of these does."""
    pixels = [one.pixel_value for one in found]
    return {
        "value": max(one.value for one in found),
        "images": sum(one.images for one in found),
        "fpr_bound": max(one.fpr_bound for one in found),
        "pixel_value": None if None in pixels else max(value for value in pixels if value is not None),
    }


def _largest_of_sensors(found: Sequence[SensorThreshold]) -> SensorThreshold:
    """Of the same modalities."""
    usual = [one.usual for one in found if one.usual is not None]
    dark_end = statistics.median(usual) if usual else None
    gain = max((one.edge_gain for one in found if one.edge_gain is not None), default=None)
    return SensorThreshold(**_largest(found), modalities=found[0].modalities, usual=dark_end, edge_gain=gain)


def _with_pixel_value(found: AnySensors, spreads: Iterable[tuple[Sensors, Spread]]) -> AnySensors:
    """The same threshold with that for pixels, of the images that consist of the same."""
    alike = (spread for sensors, spread in spreads if set(sensors) == set(found.modalities))
    return found.model_copy(update={"pixel_value": _pixel_value(alike)})


def _with_gain(found: AnySensors, gains: Iterable[tuple[Sensors, float | None]]) -> AnySensors:
    alike = [gain for sensors, gain in gains if gain is not None and set(sensors) == set(found.modalities)]
    return found.model_copy(update={"edge_gain": max(alike, default=None)})


def _pixel_value(spreads: Iterable[Spread]) -> float | None:
    joined = list(spreads)
    return reduce(Spread.joined, joined).threshold() if joined else None


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
