"""Which calibrated threshold holds for a test sample: the one by which prediction would decide it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from unimmad.checkpoint.added_classes import AddedClass
from unimmad.checkpoint.thresholds import Threshold, Thresholds, highest_normal
from unimmad.config import Precision
from unimmad.data.index import DatasetEntry, rois_of
from unimmad.data.sample import Sample
from unimmad.serialization.text import listed

MOST_NAMES = 5
"""Classes that a report's header lists."""


@dataclass(frozen=True)
class HeldThresholds:
    """The thresholds beside a checkpoint, for the data that it is evaluated on."""

    thresholds: Thresholds | None
    """None where the checkpoint was never calibrated: then those of added classes alone."""
    datasets: Mapping[str, DatasetEntry]
    """Those evaluated."""
    looks_at_class: bool
    """Whether scores depend on the class: then those of a class that training did not see are decided by none."""
    precision: Precision
    """What the scores are computed in."""
    added: Mapping[str, AddedClass] = field(default_factory=dict)
    """Classes added after training, by ``DATASET/CLASS``, whose thresholds are borrowed."""
    borrowed_hold: bool = True
    """Whether those are of the tiles that images are scored by now."""

    def of(self, sample: Sample) -> Threshold | None:
        """The class's, else that of all classes, for samples of exactly its modalities; None where the sample's
        modalities or its region of interest are not those calibrated."""
        dataset, name = self.datasets[sample.dataset], sample.class_name
        if self.is_borrowed(name):
            holds = self.borrowed_hold and not rois_of(self.datasets).of(name)
            return self.added[name].threshold(sample.modalities) if holds else None
        if self.thresholds is None:
            return None
        known = name in self.thresholds.trained_classes
        calibrated = name if name in self.thresholds.classes else None
        if not self.thresholds.same_roi(calibrated, rois_of(self.datasets).of(name)):
            return None
        if calibrated is not None:
            return self.thresholds.of_class(name, sample.modalities)
        if self.looks_at_class and not known:
            return None
        complete = set(sample.modalities) == {modality.name for modality in dataset.modalities}
        if not (complete or self.thresholds.sensor_sets):
            return None  # of an older file, which does not say what its images consisted of
        return self.thresholds.of_all(sample.modalities)

    def is_borrowed(self, class_name: str) -> bool:
        """Whether the thresholds of ``DATASET/CLASS`` are borrowed from other classes, and promise nothing."""
        return class_name in self.added and not (self.thresholds and class_name in self.thresholds.classes)

    def limits(self, sample: Sample) -> tuple[float | None, float | None]:
        """The largest score of an image, and the largest value of a pixel, that are still called normal."""
        held = self.of(sample)
        return (None, None) if held is None else (highest_normal(held.value, self.precision), held.pixel_value)

    def in_words(self) -> str:
        """For a report's header."""
        if self.thresholds is None:
            return "of added classes alone, borrowed, without a promised false-alarm rate"
        thresholds = self.thresholds
        notes = [thresholds.precision_note(self.precision)]
        if few := self._evaluated(thresholds.too_few()):
            found = [thresholds.classes[name] for name in few]
            worst = max(part.fpr_bound for of_class in found for part in (of_class, *of_class.sets))
            notes.append(f"too few calibration images to promise it, only up to {worst:.2g}: {listed(few, MOST_NAMES)}")
        without = [name for name in self._evaluated(thresholds.without_images()) if not self.is_borrowed(name)]
        if without:
            notes.append(f"by the threshold of all classes, which promises them none: {listed(without, MOST_NAMES)}")
        return (
            f"images: calibrated for a false-alarm rate of {thresholds.false_alarm_rate:g}; pixels: mean + 3 "
            f"standard deviations of the calibration maps{''.join(f'; {note}' for note in notes if note)}"
        )

    def _evaluated(self, classes: Iterable[str]) -> list[str]:
        """Those of the datasets that are evaluated."""
        return [name for name in classes if name.partition("/")[0] in self.datasets]
