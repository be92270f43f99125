"""Which calibrated threshold holds for a test sample: the one by which prediction would decide it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from unimmad.checkpoint.thresholds import Threshold, Thresholds
from unimmad.config import Precision
from unimmad.data.index import DatasetEntry, rois_of
from unimmad.data.sample import Sample


@dataclass(frozen=True)
class HeldThresholds:
    """The thresholds beside a checkpoint, for the data that it is evaluated on."""

    thresholds: Thresholds
    datasets: Mapping[str, DatasetEntry]
    """Those evaluated."""
    looks_at_class: bool
    """Whether scores depend on the class: then those of a class that training did not see are decided by none."""

    def of(self, sample: Sample) -> Threshold | None:
        """The class's, else that of all classes; None where the sample's modalities or its region of interest are not
        those calibrated."""
        given, dataset = set(sample.modalities), self.datasets[sample.dataset]
        known = sample.class_name in self.thresholds.trained_classes
        roi = rois_of(self.datasets).of(sample.class_name)
        if not self.thresholds.same_roi(sample.class_name if known else None, roi):
            return None
        of_class = self.thresholds.classes.get(sample.class_name)
        if of_class is not None:
            return of_class if set(of_class.modalities) == given else None
        complete = given == {modality.name for modality in dataset.modalities}
        return self.thresholds.all_classes if complete and (known or not self.looks_at_class) else None

    def in_words(self, precision: Precision) -> str:
        """For the header of a report that was computed in ``precision``."""
        note = self.thresholds.precision_note(precision)
        return (
            f"images: calibrated for a false-alarm rate of {self.thresholds.false_alarm_rate:g}; pixels: mean + 3 "
            f"standard deviations of the calibration maps{f'; {note}' if note else ''}"
        )
