"""Which threshold holds for a sample, and what one should know beside its score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unimmad.checkpoint.added_classes import AddedClass
from unimmad.checkpoint.normal_maps import NormalMaps
from unimmad.checkpoint.thresholds import SensorThreshold, Threshold, Thresholds
from unimmad.config import TileSettings
from unimmad.data.edges import Overlap
from unimmad.evaluation.header import TOO_SMALL
from unimmad.inference.catalogue import Catalogue, nearest_name
from unimmad.inference.engines import Engine
from unimmad.inference.reading import PreparedSample

ALL_CLASSES = "all classes"
UNKNOWN_CLASS = "no threshold holds where the class is not known"
UNKNOWN_PLACE = "no threshold holds: where to look is not known without the class"
NO_CLASS_TOLD = (
    "no threshold holds where the class is not known, and an exported file is not told it: scored by the nearest class"
)


@dataclass(frozen=True)
class Decider:
    """What is known of thresholds, and of how samples are scored now."""

    engine: Engine
    catalogue: Catalogue
    thresholds: Thresholds | None
    own_tiles: TileSettings
    """What thresholds were calibrated by that do not say it."""
    added: Mapping[str, AddedClass]
    """The classes added after training."""
    grew: bool = False
    """Whether banks grew since calibration."""

    def threshold(self, sample: PreparedSample) -> tuple[Threshold | None, str | None, list[str]]:
        """The threshold that holds for a sample, whose it is, and what to say about it."""
        known, missing, asked = sample.match.class_name, sample.match.missing, sample.asked_class
        named = asked is not None and not asked.endswith("/")
        notes = []
        if named and not known:
            near = nearest_name(str(asked), self.catalogue.classes)
            notes.append(f"class {asked} is not one that the model was trained on: {near}")
        if missing:
            notes.append(f"scored without {', '.join(missing)}")
        if self.engine.misses_class:
            return None, None, [*notes, NO_CLASS_TOLD]
        if known is not None and self.is_borrowed(known):
            return self._borrowed(known, sample, notes)
        if self.thresholds is None:
            return None, None, notes
        if note := self.thresholds.tiles_note(self.engine.settings.tiles, self.own_tiles):
            return None, None, [*notes, note]
        own = known is not None and known in self.thresholds.classes
        if not self.thresholds.same_roi(known if own else None, self.catalogue.rois.of(known)):
            if known is None and self.catalogue.rois.of_classes:
                return None, None, [*notes, f"{UNKNOWN_PLACE}{self._remedy(sample, named)}"]
            return None, None, [*notes, "no threshold holds for another region of interest: calibrate with it"]
        if self.engine.looks_at_class and known is None:
            return None, None, [*notes, f"{UNKNOWN_CLASS}{self._remedy(sample, named)}"]
        threshold = self._of_sensors(known if own else None, sample)
        if threshold is None:
            # A map adds up over modalities, so that scores of others are of another size.
            return None, None, [*notes, self._calibrated_with(known if own else None, bool(missing))]
        if not own:
            notes.append("decided by the threshold of all classes")
            if named:
                notes.append(f"no calibration image was of class {asked}, so that no false-alarm rate is promised")
        if known is None and self.grew:
            # The nearest class is the one of the smallest mean, and its largest value may be larger than another's.
            notes.append("banks grew since calibration: without its class no false-alarm rate is promised")
        if note := self.thresholds.precision_note(self.engine.precision):
            notes.append(note)
        if threshold.fpr_bound > self.thresholds.false_alarm_rate:
            rate = f"{threshold.fpr_bound:.3g}"
            images = f"{threshold.images} calibration image{' promises' if threshold.images == 1 else 's promise'}"
            notes.append(f"{images} a false-alarm rate of {rate} only")
        return threshold, known if own else ALL_CLASSES, notes

    def _remedy(self, sample: PreparedSample, named: bool) -> str:
        """The end of a note about a class that is not known: which there are, where none was named."""
        return "" if named else f": name it: --class, {self.catalogue.classes_in_words(sample.asked_class)}"

    def promises(self, sample: PreparedSample, of: str) -> bool:
        """Whether a sample's threshold, which is ``of`` a class or of all, promises a false-alarm rate for it: not that
        of other classes where its own is named, nor without a class where banks grew."""
        own_is_named = sample.asked_class is not None and not sample.asked_class.endswith("/")
        return not (own_is_named or self.grew if of == ALL_CLASSES else self.is_borrowed(of))

    def is_borrowed(self, class_name: str) -> bool:
        """Whether the threshold of ``DATASET/CLASS``, one added after training, is borrowed from other classes."""
        return class_name in self.added and not (self.thresholds and class_name in self.thresholds.classes)

    def _borrowed(
        self, class_name: str, sample: PreparedSample, notes: list[str]
    ) -> tuple[Threshold | None, str | None, list[str]]:
        """As ``threshold``, of a class whose threshold promises nothing."""
        added = self.added[class_name]
        if self.catalogue.rois.of(class_name) is not None:
            return None, None, [*notes, "no threshold holds for another region of interest: calibrate with it"]
        if not self.own_tiles.same_views(self.engine.settings.tiles):
            used, own = self.engine.settings.tiles.in_words(), self.own_tiles.in_words()
            return None, None, [*notes, f"no threshold holds for {used}: {class_name} was added with {own}"]
        threshold = added.threshold(sample.modality_names)
        if threshold is None:
            known = " or ".join(" + ".join(one.modalities) for one in added.entry.thresholds)
            return None, None, [*notes, f"no threshold holds for these modalities: {class_name} was added with {known}"]
        return threshold, class_name, [*notes, f"class {added.in_words()}"]

    def _of_sensors(self, calibrated: str | None, sample: PreparedSample) -> Threshold | None:
        """The threshold of a calibrated class, or (None) of all, for images of the sample's modalities."""
        assert self.thresholds is not None
        if calibrated is not None:
            return self.thresholds.of_class(calibrated, sample.modality_names)
        if sample.match.missing and not self.thresholds.sensor_sets:
            return None  # of an older file, which does not say what its images consisted of
        return self.thresholds.of_all(sample.modality_names)

    def _calibrated_with(self, calibrated: str | None, fewer: bool) -> str:
        """Why no threshold holds."""
        assert self.thresholds is not None
        own = None if calibrated is None else self.thresholds.classes[calibrated]
        known = self.thresholds.sensor_sets if own is None else (own, *own.sets)
        said = " or ".join(" + ".join(part.modalities) for part in known)
        what = "no threshold holds for fewer modalities" if fewer else "no threshold holds for these modalities"
        return f"{what}: {calibrated or ALL_CLASSES} calibrated with {said}" if said else what


def misaligned(overlaps: Mapping[str, Overlap], threshold: Threshold | None) -> tuple[str, ...]:
    usual = threshold.edge_gain if isinstance(threshold, SensorThreshold) else None
    return tuple(name for name, overlap in overlaps.items() if overlap.is_misaligned(usual))


def misaligned_notes(sample: PreparedSample, names: Sequence[str]) -> list[str]:
    first = sample.modality_names[0]
    return [
        f"{name} and {first} are perhaps misaligned: edges fit best where {name} is moved by "
        f"{sample.overlaps[name].down:+.1%} of the height and {sample.overlaps[name].right:+.1%} of the width"
        for name in names
    ]


def views_notes(sample: PreparedSample) -> list[str]:
    """What one should know of how an image of this size is looked at."""
    shrinking, first = min(view.shrinking for view in sample.views), sample.views[0].source
    notes = []
    if shrinking > TOO_SMALL:
        notes.append(f"made {shrinking:.0f} times smaller, which loses defects of a few pixels; tiles would not")
    if len(sample.views) == 1 and (first.height, first.width) != sample.size:
        notes.append("looked at in the middle only, by data.aspect crop")
    return notes


def map_limits(
    normal_maps: NormalMaps | None, sample: PreparedSample, threshold: Threshold | None
) -> tuple[float, float] | None:
    """Where a picture's colours begin and end, see ``Prediction.limits``: the threshold, or what normal maps reach, is
    the middle; None where neither is known."""
    dark: float | None = None
    middle: float | None = None
    if normal_maps is not None:
        dark, middle = normal_maps.of(sample.match.class_name, sample.modality_names) or (None, None)
    if threshold is not None:
        middle = threshold.value
        if isinstance(threshold, SensorThreshold) and threshold.usual is not None:
            dark = threshold.usual
    if middle is None:
        return None
    if dark is None or dark >= middle:
        return (0.5 * middle, 1.5 * middle) if middle > 0 else None
    return dark, 2 * middle - dark
