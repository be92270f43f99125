"""Adds a class to a checkpoint from a few normal images: its bank, and thresholds borrowed from other classes.

Each image is scored as if it were in no bank (leave one out), so that a class of two images has scores already. Of a
single image mirrored copies go into the bank beside it, which stand for the other images.

So few scores say what is usual, and not how far a normal image may lie above it. That is borrowed: the median, over the
known classes with as many modalities, of their threshold over their typical score, times the new class's typical score;
and no less than the highest score of its own images. Nobody can promise a false-alarm rate by it. An image that is
given twice counts once, since its twin would be in the bank when it is left out.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from unimmad.checkpoint.added_classes import AddedClass, AddedEntry
from unimmad.checkpoint.loading import LoadedCheckpoint
from unimmad.checkpoint.normal_maps import NormalMaps
from unimmad.checkpoint.thresholds import Sensors, SensorThreshold, Thresholds
from unimmad.config import Precision
from unimmad.data.edges import usual_gain
from unimmad.data.layouts.calibration import shuffled
from unimmad.data.layouts.scan import Notices
from unimmad.evaluation.geometry import scoring_geometry
from unimmad.inference.catalogue import Catalogue
from unimmad.inference.detector import Detector
from unimmad.inference.engines import ModelEngine, normalised
from unimmad.inference.inputs import InputSample
from unimmad.inference.new_class import NewClass
from unimmad.inference.prediction import Prediction
from unimmad.inference.reading import PreparedSample, is_blank, pixels_digest, prepare_sample
from unimmad.methods.added_class import AddedBank, WithAddedClasses, empty_bank
from unimmad.metrics.at_threshold import Spread
from unimmad.model.backends.tf32 import without_tf32
from unimmad.serialization.text import listed

MOST_IMAGES = 50
"""Of a class, unless more are asked for: a model is better trained with so many, and each is scored once more."""
MIRRORED: tuple[tuple[int, ...], ...] = ((-1,), (-2,), (-2, -1))
"""Axes along which the copies of a single image are mirrored."""
_DIGITS = 16
"""Of an image's digest."""
TellDone = Callable[[], object]


def check_new(name: str, catalogue: Catalogue, added: Iterable[str], replace_it: bool) -> None:
    """Whether a class can be added under this name.

    Raises:
        ValueError: it is there already.
    """
    if name in added:
        if not replace_it:
            raise ValueError(f"class {name} was added already: give --replace, or --remove {name}")
    elif name in catalogue.classes:
        raise ValueError(f"class {name} is one that the model was trained on; choose another name")


def namesakes_note(new: NewClass, known: Iterable[str]) -> str:
    """What to say of a class that is called like ``known`` ones of other datasets; empty where there is none.

    Raises:
        ValueError: there is one, and nobody told the dataset of the new one.
    """
    plain = new.name.partition("/")[2]
    alike = [name for name in known if name != new.name and name.partition("/")[2] == plain]
    if not alike:
        return ""
    if not new.dataset_told:
        raise ValueError(
            f"--class {plain}: the model knows {listed(alike, 5)}; give the new class another name, or tell its "
            f"dataset, too: --class {new.name}"
        )
    return (
        f"{plain} is a class of several datasets from now on, {listed([*alike, new.name], 5)}: --class {plain} is "
        "ambiguous, name the one that is meant with its dataset"
    )


def chosen_images(found: NewClass, wanted: int | None, seed: int) -> NewClass:
    """The class with ``wanted`` of its images, drawn by the seed; None: all, if they are not too many.

    Raises:
        ValueError: there are fewer, none, or too many.
    """
    count = len(found.samples)
    if not count:
        raise ValueError(f"class {found.name} has no normal image; give 1 to {MOST_IMAGES}")
    if wanted is None and count > MOST_IMAGES:
        raise ValueError(
            f"class {found.name} has {count} normal images, more than {MOST_IMAGES}: --images {MOST_IMAGES} draws so "
            "many of them; a model is better trained with so many"
        )
    if wanted is not None and not 1 <= wanted <= count:
        raise ValueError(f"--images {wanted}: class {found.name} has {count} normal images")
    if wanted is None:
        return found
    names = set(shuffled([sample.name for sample in found.samples], seed)[:wanted])
    return replace(found, samples=tuple(sample for sample in found.samples if sample.name in names))


def shared_images(new: AddedClass, others: Iterable[AddedClass]) -> list[str]:
    """What to say of classes that were made from some of the same images."""
    notes = []
    for other in others:
        count = len(set(new.entry.digests) & set(other.entry.digests))
        if count and other.name != new.name:
            notes.append(
                f"of the images of {new.name} {count} of {new.entry.images} are those of {other.name}, too: an image "
                "is scored by the one of them that is named with it"
            )
    return notes


class ClassAdder:
    """Makes banks and thresholds of new classes for one checkpoint, one class after the other."""

    def __init__(
        self,
        checkpoint: LoadedCheckpoint,
        catalogue: Catalogue,
        thresholds: Thresholds | None,
        normal_maps: NormalMaps | None,
        *,
        device: torch.device,
        precision: Precision | None = None,
    ) -> None:
        """
        Args:
            checkpoint: as it was loaded, without added classes; its model is brought into its inference form.
            catalogue: what it was trained on.
            thresholds: those beside it, to borrow from.
            normal_maps: of the checkpoint; borrowed from where there are no thresholds.
            device: what to compute on.
            precision: None: ``default_precision``.
        """
        recipe = checkpoint.recipe
        self.weights = checkpoint.weights_digest
        self.catalogue, self.thresholds, self.normal_maps = catalogue, thresholds, normal_maps
        self.model = WithAddedClasses(checkpoint.model, [])
        self.engine = ModelEngine(self.model, recipe.evaluation, device, precision, scoring_geometry(recipe))

    def add(self, new: NewClass, tell_done: TellDone = lambda: None, notices: Notices | None = None) -> AddedClass:
        """What is to be kept of a class; ``tell_done`` is called twice for each image, ``notices`` takes what the user
        should know.

        Raises:
            ValueError: an image can't be read or does not fit, the method has no features to search, or a score is NaN.
        """
        bank = empty_bank(self.model.base, new.name)
        self.model.banks = torch.nn.ModuleList([bank])
        known = self.catalogue.with_classes({new.name: new.dataset})
        pictures = _pictures(new)
        if repeated := [sample.name for sample in new.samples if sample.name not in pictures]:
            new = replace(new, samples=tuple(sample for sample in new.samples if sample.name in pictures))
            if notices is not None:
                are = "images are" if len(repeated) > 1 else "image is"
                notices.add(f"{new.name}: {len(repeated)} {are} there twice and count once: {listed(repeated, 5)}")
        if notices is not None and (blank := [sample.name for sample in new.samples if is_blank(sample)]):
            notices.add(
                f"{new.name}: {len(blank)} of {len(new.samples)} images hold one value only, and say nothing of what "
                f"is normal: {listed(blank, 5)}"
            )
        self._fill(bank, new, known, tell_done)
        detector = Detector(self.engine, known)
        found: dict[Sensors, list[Prediction]] = defaultdict(list)
        for sample in new.samples:
            with bank.leave_out(_key(sample.name)):
                prediction = detector.predict(sample.images, class_name=new.name, name=sample.name)
            found[prediction.modalities].append(prediction)
            tell_done()
        by_count = sorted(found.items(), key=lambda item: -len(item[1]))
        borrowed = {sensors: _spread_of_others(sensors, self.thresholds, self.normal_maps) for sensors in found}
        entry = AddedEntry(
            class_name=new.name,
            dataset=new.dataset,
            images=len(new.samples),
            banks=tuple((name, slot) for name, slot in bank.search.describe()["banks"]),
            thresholds=tuple(_threshold(sensors, of_set, borrowed[sensors][0]) for sensors, of_set in by_count),
            borrowed_from=borrowed[by_count[0][0]][1],
            weights=self.weights,
            digests=tuple(pictures.values()),
        )
        return AddedClass(entry, {name: tensor.detach().cpu() for name, tensor in bank.state_dict().items()})

    def _prepared(self, sample: InputSample, catalogue: Catalogue, class_name: str) -> PreparedSample:
        engine = self.engine
        prepared = prepare_sample(sample, catalogue, class_name, engine.image_size, False, engine.geometry)
        engine.check(prepared)
        return prepared

    def _fill(self, bank: AddedBank, new: NewClass, catalogue: Catalogue, tell_done: TellDone) -> None:
        """Make the bank."""
        engine, copies = self.engine, MIRRORED if len(new.samples) == 1 else ()
        bank.begin()
        with without_tf32(), torch.autocast(engine.device.type, torch.bfloat16, enabled=engine.precision == "bf16"):
            for sample in new.samples:
                prepared, key = self._prepared(sample, catalogue, new.name), _key(sample.name)
                slots = [modality.slot for modality in prepared.modalities]
                for view, images_MCHW in enumerate(_views(prepared)):
                    on_device_MCHW = images_MCHW.to(engine.device)
                    bank.add(self.model.base, on_device_MCHW, slots, key, view)
                    for copy, axes in enumerate(copies):  # which count as photographs of their own
                        bank.add(self.model.base, on_device_MCHW.flip(axes), slots, f"{key}\n{copy}", view)
                tell_done()
        bank.finish()


def _pictures(new: NewClass) -> dict[str, str]:
    """By the names of all images that differ, the digest of their pixels."""
    names: dict[str, str] = {}
    for sample in new.samples:
        names.setdefault(pixels_digest(sample), sample.name)
    return {name: digest for digest, name in names.items()}


def _key(name: str) -> str:
    """The photograph's, by which a bank's patches are drawn; the same as ever, so that banks are."""
    return f"{name}\n0"


def _views(sample: PreparedSample) -> Iterator[Tensor]:
    """The normalised images of each view."""
    for view in sample.views:
        yield normalised(sample.cut(view))


def _threshold(sensors: Sensors, found: Sequence[Prediction], spread: float) -> SensorThreshold:
    scores = [prediction.score for prediction in found]
    typical = statistics.median(scores)
    spreads = (Spread.of(prediction.map_HW) for prediction in found)
    pixels = Spread()
    for of_image in spreads:
        pixels = pixels.joined(of_image)
    return SensorThreshold(
        value=max(*scores, typical * spread),
        images=len(scores),
        fpr_bound=1.0,
        pixel_value=pixels.threshold(),
        modalities=sensors,
        usual=statistics.median(float(np.median(prediction.map_HW)) for prediction in found),
        typical=typical,
        edge_gain=usual_gain(one for prediction in found for one in prediction.overlaps.values()),
    )


def _spread_of_others(
    sensors: Sensors, thresholds: Thresholds | None, normal_maps: NormalMaps | None
) -> tuple[float, str]:
    """How far above the typical score the threshold lies in other classes, 1 or more, and where that is from."""
    found: Mapping[str, list[tuple[int, float]]] = {
        "the thresholds": [
            (len(part.modalities), part.value / part.typical)
            for own in (thresholds.classes.values() if thresholds else ())
            for part in (own, *own.sets)
            if part.typical
        ],
        "the highest normal score": [
            (len(one.modalities), one.highest / one.typical)
            for one in (normal_maps.sets if normal_maps else ())
            if one.typical
        ],
    }
    for what, ratios in found.items():
        if ratios:
            alike = [ratio for count, ratio in ratios if count == len(sensors)] or [ratio for _, ratio in ratios]
            spread = max(1.0, statistics.median(alike))
            classes = "class" if len(alike) == 1 else "classes"
            return spread, f"{spread:.3g} times its typical score, by {what} of {len(alike)} known {classes}"
    return 1.0, "the highest score of its own images, too low, since there is no calibrated class to borrow from"
