"""Thresholds for samples that lack a sensor which all calibration images have: the same images, scored without it."""

from __future__ import annotations

from collections.abc import Callable

from unimmad.checkpoint.thresholds import Sensors, Thresholds
from unimmad.data.reading.shard_set import ShardSet
from unimmad.inference.calibration import KeptSensors


def with_missing_sensors(
    thresholds: Thresholds, shards: ShardSet, calibrated: Callable[[KeptSensors], Thresholds]
) -> Thresholds:
    """The same, and besides thresholds of each class without each of its modalities in turn.

    Args:
        thresholds: of the calibration images as they are.
        shards: that these are in.
        calibrated: ``calibrate`` with everything else as it was for these.
    """
    for kept in kept_sensors(shards):
        thresholds = thresholds.with_sets_of(calibrated(kept))
    return thresholds


def kept_sensors(shards: ShardSet) -> list[KeptSensors]:
    """What is left where one modality lacks, and the classes that all have something left then."""
    classes_of: dict[Sensors, list[str]] = {}
    for class_name, refs in shards.classes("calibration").items():
        entry = shards.datasets[class_name.partition("/")[0]]
        seen = frozenset().union(*(ref.entry.images for ref in refs))
        names = [modality.name for modality in entry.modalities if modality.name in seen]
        for missing in names:
            left = tuple(name for name in names if name != missing)
            if all(any(name in ref.entry.images for name in left) for ref in refs):
                classes_of.setdefault(left, []).append(class_name)
    return [KeptSensors(left, tuple(classes)) for left, classes in classes_of.items()]
