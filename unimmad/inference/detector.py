"""``unimmad.Detector``: a trained model that scores one's own images."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unimmad.checkpoint.added_classes import AddedClass, with_added_classes
from unimmad.checkpoint.folder import find_checkpoint
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.monitoring import MONITORING_NAME, MonitoringReference, load_reference
from unimmad.checkpoint.normal_maps import NormalMaps, load_normal_maps
from unimmad.checkpoint.thresholds import SensorThreshold, Threshold, Thresholds, is_above, load_thresholds
from unimmad.config import Precision, TileSettings
from unimmad.data.edges import Overlap
from unimmad.data.views import View
from unimmad.evaluation.geometry import scoring_geometry, with_tiles
from unimmad.evaluation.header import TOO_SMALL
from unimmad.evaluation.scoring import check_scored, maps_and_scores, named_device, shares_of_score
from unimmad.evaluation.tiling import Cutting, scored_by_views
from unimmad.inference.catalogue import Catalogue
from unimmad.inference.catalogue_sources import checkpoint_catalogue
from unimmad.inference.engines import Engine, ModelEngine, OnnxEngine
from unimmad.inference.inputs import ImageSource, InputSample
from unimmad.inference.measuring import facts_of_prepared
from unimmad.inference.pictures import Picture
from unimmad.inference.reading import PreparedSample, prepare_sample
from unimmad.inference.sensor_parts import OfView, SensorParts, sensor_parts
from unimmad.monitoring.monitor import DEFAULT_FALSE_ALARMS, DEFAULT_SHARE, DriftMonitor, Seen
from unimmad.serialization.text import shown

DEFAULT_BATCH_SIZE = 8
ALL_CLASSES = "all classes"
NO_CLASS_TOLD = (
    "no threshold holds where the class is not known, and an exported file is not told it: scored by the nearest class"
)
READERS = 2
"""Threads that decode the next batch while one is scored."""

OnSkip = Callable[[str, ValueError], None]
"""Takes the name of a sample that can't be scored, and why."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of one sample."""

    name: str
    """Name of the sample, as it was given."""
    class_name: str | None
    """Class as ``DATASET/CLASS``; None where it was not given or is not known to the model."""
    modalities: tuple[str, ...]
    """Modalities that were scored, in slot order."""
    files: dict[str, str]
    """Path of each image, by modality name; empty for arrays."""
    score: float
    """Image score, any finite number; the higher, the less normal."""
    map_HW: NDArray[np.float32]
    """Blurred anomaly map, float32 [H, W], of the size that the images came in; what is cropped away has its smallest
    value."""
    threshold: float | None
    """Score above which it is called anomalous; None where no threshold holds for this sample."""
    threshold_of: str | None
    """Class that the threshold was calibrated on, or ``all classes``; None without a threshold."""
    notes: tuple[str, ...]
    """Sentences that one should know beside this result."""
    pictures: tuple[tuple[str, Picture], ...]
    """Name and picture of each modality; empty where they were not asked for."""
    weights_HW: NDArray[np.float32] | None = None
    """What each pixel of the map weighed in it, 0 (not looked at) to 1; None where no region of interest was used."""
    roi: str | None = None
    """Digest of the region of interest."""
    precision: Precision = "fp32"
    """What the score was computed in."""
    threshold_promised: bool | None = None
    """Whether the threshold promises a false-alarm rate; those of classes added from a few images do not. None without
    a threshold."""
    limits: tuple[float, float] | None = None
    """Map values at the dark and the bright end of a picture's colours: from what normal maps usually have, with the
    threshold (without one: the highest score of known normal images) in the middle; None where nothing tells them."""
    statistics: Mapping[str, Mapping[str, float]] | None = None
    """By modality, plain numbers of its image that a monitor compares with calibration's; None where they were not
    asked for, or the class was not calibrated."""

    shares: dict[str, float] | None = None
    """Each modality's share of the score, adding up to 1; None where the method or an exported file can't say it."""
    modality_maps: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """What each modality adds to ``map_HW``, of its size; they add up to it. Empty for samples of one modality, of
    several views (tiles), and where ``shares`` is None."""

    overlaps: dict[str, Overlap] = field(default_factory=dict)
    """How the edges of each modality but the first lie over the first one's."""
    misaligned: tuple[str, ...] = ()
    """The modalities that seem to lie elsewhere than the first (``Overlap.is_misaligned``), more so than in the normal
    images that the threshold was calibrated on."""

    @property
    def anomalous(self) -> bool | None:
        """Whether the score is above the threshold; None without one. Scores as near to it as another batch size may
        bring them (``thresholds.TIES``) are not."""
        return None if self.threshold is None else is_above(self.score, self.threshold, self.precision)


class Detector:
    """Scores images of any size and bit depth, of known modalities and of any class.

    Any number of threads may share a detector and call ``predict`` and ``predict_all`` at once: each gets the numbers
    that it would get alone. An iterator that ``predict_all`` gave belongs to one thread.

    Examples:
        >>> from unimmad import Detector
        >>> detector = Detector.from_checkpoint("runs/demo")  # doctest: +SKIP
        >>> images = {"rgb": "part.png", "depth": "part_depth.png"}
        >>> found = detector.predict(images, class_name="cookie")  # doctest: +SKIP
        >>> print(found.score, found.anomalous, found.map_HW.shape)  # doctest: +SKIP
        0.41 True (128, 128)
    """

    def __init__(
        self,
        engine: Engine,
        catalogue: Catalogue,
        thresholds: Thresholds | None = None,
        model_digest: str = "",
        normal_maps: NormalMaps | None = None,
        reference: MonitoringReference | None = None,
        own_tiles: TileSettings | None = None,
        added: Mapping[str, AddedClass] | None = None,
    ) -> None:
        """See ``from_checkpoint`` and ``from_onnx``, which put these together.

        ``model_digest`` differs for models that give other numbers; ``normal_maps`` are for the colours of pictures;
        ``reference`` is what calibration images were like; ``own_tiles`` are what thresholds were calibrated by that do
        not say it; None: those of the engine; ``added`` are the classes added after training, which the engine's model
        and the catalogue know.
        """
        self.engine = engine
        self.catalogue = catalogue
        self.thresholds = thresholds
        self.model_digest = model_digest
        self.normal_maps = normal_maps
        self.reference = reference
        self.measures = False
        """Whether predictions get their ``statistics``, where there is a ``reference``."""
        self.monitor: DriftMonitor | None = None
        """What is told of every prediction; see ``start_monitor``."""
        self.own_tiles = own_tiles or engine.settings.tiles
        self.added = dict(added or {})

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        data: Sequence[Path] | None = None,
        device: str | None = None,
        precision: Precision | None = None,
        verify: bool = True,
        roi: Path | None = None,
        tiles: str | None = None,
    ) -> Detector:
        """``from_onnx`` for a file called ``*.onnx``, else ``from_checkpoint``.

        Raises:
            ValueError: as theirs, or ``data`` or a precision that an exported file can't follow.
        """
        if Path(path).suffix != ".onnx":
            return cls.from_checkpoint(
                path, data=data, device=device, precision=precision, verify=verify, roi=roi, tiles=tiles
            )
        if data is not None:
            raise ValueError(f"{path} says itself which modalities it takes: leave the data out")
        detector = cls.from_onnx(path, device=device, roi=roi, tiles=tiles)
        if precision not in (None, detector.engine.precision):
            raise ValueError(
                f"{path} computes in {detector.engine.precision}: leave {precision} out, or use the checkpoint"
            )
        return detector

    @classmethod
    def from_checkpoint(
        cls,
        path: Path | str,
        *,
        data: Sequence[Path] | None = None,
        device: str | None = None,
        precision: Precision | None = None,
        verify: bool = True,
        roi: Path | None = None,
        tiles: str | None = None,
    ) -> Detector:
        """Load a checkpoint, and the thresholds beside it if there are any.

        Args:
            path: a run folder (its newest checkpoint) or a checkpoint folder.
            data: shard folders whose indexes tell the modalities and classes; by default they come from the
                thresholds, or from the folders that the checkpoint was trained on.
            device: ``cpu``, ``cuda``, ``cuda:1``; by default a GPU where there is one.
            precision: ``bf16`` or ``fp32``; by default as in evaluation: bf16 on a GPU that computes in it, else fp32.
            verify: hold the checkpoint's files against their digests.
            roi: where to look, in place of the regions of interest that go with the thresholds or the trained data; see
                ``data.roi.given_rois``.
            tiles: to score by, in place of the checkpoint's own: ``512`` (pixels of the image), ``512:64`` (with the
                overlap), ``512:64:whole`` (the whole image besides), or ``none``. Thresholds of others do not hold.

        Raises:
            ValueError: no whole checkpoint, a file that is not what was saved, no such device, nothing that tells the
                modalities, or regions that can't be read.
        """
        chosen = named_device(device)
        checkpoint = with_added_classes(load_checkpoint(find_checkpoint(Path(path)), verify=verify))
        thresholds = load_thresholds(checkpoint.folder)
        catalogue = checkpoint_catalogue(checkpoint, data, thresholds)
        catalogue = catalogue.with_classes({name: one.entry.dataset for name, one in checkpoint.added.items()})
        own = checkpoint.recipe.evaluation.tiles
        recipe = with_tiles(checkpoint.recipe, None if tiles is None else TileSettings.parse(tiles))
        engine = ModelEngine(checkpoint.model, recipe.evaluation, chosen, precision, scoring_geometry(recipe))
        catalogue = catalogue if roi is None else catalogue.with_rois(roi)
        digest = checkpoint.weights_digest + recipe.evaluation.model_dump_json() + recipe.data.aspect
        reference = load_reference(checkpoint.folder)
        if reference is not None and reference.described.weights != checkpoint.weights_digest:
            raise ValueError(
                f"{checkpoint.folder / MONITORING_NAME}: it is of other weights than the checkpoint's; calibrate "
                "again, or remove it"
            )
        normal_maps = load_normal_maps(checkpoint.folder) if own.same_views(recipe.evaluation.tiles) else None
        return cls(engine, catalogue, thresholds, digest, normal_maps, reference, own, checkpoint.added)

    @classmethod
    def from_onnx(
        cls, file: Path | str, *, device: str | None = None, roi: Path | None = None, tiles: str | None = None
    ) -> Detector:
        """Open a file that ``unimmad export --format onnx`` made; needs ONNX Runtime.

        Args:
            file: which.
            device: ``cpu``, ``cuda``, ``cuda:1``; by default a GPU where ONNX Runtime can use one.
            roi: as for ``from_checkpoint``, in place of the file's.
            tiles: as for ``from_checkpoint``, in place of the file's.

        Raises:
            ValueError: no such file, it can't be run, or not on this device.
        """
        engine = OnnxEngine(Path(file), device, None if tiles is None else TileSettings.parse(tiles))
        described = engine.metadata
        catalogue = Catalogue(described.datasets, described.classes)
        catalogue = catalogue if roi is None else catalogue.with_rois(roi)
        digest = engine.file_digest + engine.settings.tiles.model_dump_json()
        return cls(engine, catalogue, described.thresholds, digest, own_tiles=described.evaluation.tiles)

    def start_monitor(
        self, false_alarms: float = DEFAULT_FALSE_ALARMS, anomalous_share: float = DEFAULT_SHARE
    ) -> DriftMonitor:
        """A new monitor, which from now on is told of every prediction, as soon as it is made, in constant memory.

        Args:
            false_alarms: as for ``DriftMonitor``.
            anomalous_share: as for ``DriftMonitor``.

        Raises:
            ValueError: there is nothing to compare with, as calibration wrote nothing or it is an exported file; or a
                number is not between 0 and 1.
        """
        if self.reference is None:
            raise ValueError(
                "a monitor compares with calibration images, and nothing is known of any: calibrate the checkpoint "
                "(again, if an earlier version did), and open it, not an exported file"
            )
        self.monitor = DriftMonitor(self.reference, false_alarms, anomalous_share)
        self.measures = True
        return self.monitor

    def predict(
        self,
        images: ImageSource | Mapping[str, ImageSource],
        *,
        class_name: str | None = None,
        name: str = "image",
    ) -> Prediction:
        """Score one sample.

        Args:
            images: a file, its bytes (``EncodedImage``) or a decoded array (H x W or H x W x channels) by modality
                name; a single one without a name where the model has a dataset of one modality.
            class_name: ``CLASS`` or ``DATASET/CLASS``: its threshold decides. One that the model does not know is
                scored as well, and decided by the threshold of all classes; so is ``DATASET/``, which tells the dataset
                alone.
            name: for messages.

        Raises:
            ValueError: an image that can't be read or does not fit, a modality that is not known, an argument of
                another type, or a map or score that is NaN or infinite.
        """
        return next(self.predict_all([InputSample(name, images)], class_name=class_name))

    def predict_all(
        self,
        samples: Iterable[InputSample],
        *,
        class_name: str | None = None,
        batch_size: int = DEFAULT_BATCH_SIZE,
        with_pictures: bool = False,
        on_skip: OnSkip | None = None,
    ) -> Iterator[Prediction]:
        """Score many, in their order; files are read while others are scored.

        Args:
            samples: what to score.
            class_name: as for ``predict``, of all of them.
            batch_size: samples read, and views scored, at once.
            with_pictures: fill ``Prediction.pictures``.
            on_skip: called for each sample that can't be scored, which is left out; None: it is raised.

        Raises:
            ValueError: as ``predict``. Whatever is raised, by ``samples`` too, is raised after all samples before it
                were given.
        """
        if class_name is not None and not isinstance(class_name, str):
            raise ValueError(
                f"class_name is a str such as 'cookie' or 'solids/cookie', or None, not {shown(class_name)}"
            )
        prepare = partial(self.prepare, class_name=class_name, with_pictures=with_pictures)
        pool = ThreadPoolExecutor(READERS)
        try:
            started = _started(samples, prepare, pool)
            reading = list(islice(started, batch_size))
            while reading:
                prepared, error = _read(reading, on_skip)
                reading = [] if error else list(islice(started, batch_size))
                if prepared:
                    for sample, found in zip(prepared, self.score_prepared(prepared, batch_size), strict=True):
                        if not isinstance(found, ValueError):
                            yield found
                        elif on_skip is None:
                            raise found
                        else:
                            on_skip(sample.name, found)
                if error:
                    raise error
        finally:
            pool.shutdown(cancel_futures=True)

    def problems(
        self, samples: Iterable[InputSample], *, class_name: str | None = None
    ) -> Iterator[tuple[str, ValueError]]:
        """The names of the samples that can't be read or do not fit, and why: reads them all, and scores none."""
        prepare = partial(self.prepare, class_name=class_name)
        with ThreadPoolExecutor(READERS) as pool:
            started = _started(samples, prepare, pool)
            while reading := list(islice(started, DEFAULT_BATCH_SIZE)):
                yield from _broken(reading)

    def prepare(
        self, sample: InputSample, *, class_name: str | None = None, with_pictures: bool = False
    ) -> PreparedSample:
        """Decode one sample: the first half of ``predict``, for callers with threads and batches of their own.

        Raises:
            ValueError: as ``predict``, but for what is not finite.
        """
        engine = self.engine
        prepared = prepare_sample(sample, self.catalogue, class_name, engine.image_size, with_pictures, engine.geometry)
        self.engine.check(prepared)
        return prepared

    def _statistics(self, samples: Sequence[PreparedSample]) -> list[dict[str, dict[str, float]] | None]:
        """See ``Prediction.statistics``; of several images at once, as they are scored."""
        reference, engine = self.reference, self.engine
        if not self.measures or reference is None or not isinstance(engine, ModelEngine):
            return [None] * len(samples)
        known = [sample for sample in samples if sample.match.class_name in reference.classes]
        measured = iter(facts_of_prepared(engine, known) if known else ())
        found: list[dict[str, dict[str, float]] | None] = []
        for sample in samples:
            name = sample.match.class_name
            if name not in reference.classes or name is None:
                found.append(None)
                continue
            facts = next(measured)
            found.append({key: one.compared(reference.usual.get((name, key))) for key, one in facts.items()})
        return found

    def score_prepared(
        self, samples: Sequence[PreparedSample], batch_size: int = DEFAULT_BATCH_SIZE
    ) -> Iterator[Prediction | ValueError]:
        """The other half: each sample's prediction, or what makes its map or score unusable, in their order.

        They may be of several classes, each as ``prepare`` was told; ``batch_size`` views are scored at once.
        """
        scored = self._scored(samples, batch_size)
        for sample, of_images, of_sample in zip(samples, self._statistics(samples), scored, strict=True):
            try:
                prediction = self._prediction(sample, *of_sample, of_images)
            except ValueError as unusable:
                yield unusable
            else:
                if self.monitor is not None:
                    self.monitor.add(_seen(prediction))
                yield prediction

    def _scored(
        self, samples: Sequence[PreparedSample], batch_size: int
    ) -> Iterator[tuple[NDArray[np.float32], float, SensorParts]]:
        """The map [H, W] and the score of each, and what its modalities have to do with them."""
        images = (Cutting(sample.size, sample.views, sample.cut, sample.look) for sample in samples)
        views: deque[OfView] = deque()
        found = scored_by_views(images, partial(self._score, views), batch_size)
        for sample, (map_HW, score) in zip(samples, found, strict=True):
            yield map_HW, score, sensor_parts(sample, [views.popleft() for _ in sample.views])

    def _score(
        self, seen: deque[OfView], cut: list[PreparedSample], views: list[View]
    ) -> tuple[NDArray[np.float32], Sequence[float]]:
        """Maps and scores of views; what their modalities have to do with them goes into ``seen``."""
        if any(len(sample.modalities) > 1 for sample in cut):
            maps_BHW, scores_B, parts = self.engine.score_with_parts(cut)
        else:
            (maps_BHW, scores_B), parts = self.engine.score(cut), None
        settings, weights = self.engine.settings, [sample.weights_HW for sample in cut]
        _, scores_B = maps_and_scores(maps_BHW, settings, weights, views, scores_B)
        for place, (sample, view) in enumerate(zip(cut, views, strict=False)):
            parts_MHW = None if parts is None else parts[place]
            shares = None
            if parts_MHW is not None:
                shares = shares_of_score(maps_BHW[place], parts_MHW, settings, sample.weights_HW, view)
            kept = parts_MHW if len(sample.views) == 1 and len(sample.modalities) > 1 else None
            seen.append(OfView(float(scores_B[place]), shares, kept))
        return maps_BHW.numpy(), scores_B.tolist()

    def _prediction(
        self,
        sample: PreparedSample,
        map_HW: NDArray[np.float32],
        score: float,
        parts: SensorParts,
        statistics: Mapping[str, Mapping[str, float]] | None,
    ) -> Prediction:
        check_scored(sample.name, map_HW, score)
        threshold, of, notes = self._threshold(sample)
        misaligned = _misaligned(sample.overlaps, threshold)
        return Prediction(
            name=sample.name,
            class_name=sample.match.class_name,
            modalities=sample.modality_names,
            files=sample.files,
            score=score,
            map_HW=map_HW,
            threshold=None if threshold is None else threshold.value,
            threshold_of=of,
            notes=(*sample.notes, *_views_notes(sample), *(_misaligned_notes(sample, misaligned)), *notes),
            pictures=sample.pictures,
            weights_HW=None if sample.look is None else sample.look.stored().numpy(),
            roi=None if (roi := self.catalogue.rois.of(sample.match.class_name)) is None else roi.digest,
            precision=self.engine.precision,
            threshold_promised=None if threshold is None else not (of is not None and self.is_borrowed(of)),
            limits=self._limits(sample, threshold),
            statistics=statistics,
            shares=parts.shares,
            modality_maps=parts.maps,
            overlaps=sample.overlaps,
            misaligned=misaligned,
        )

    def _limits(self, sample: PreparedSample, threshold: Threshold | None) -> tuple[float, float] | None:
        """See ``Prediction.limits``."""
        dark: float | None = None
        middle: float | None = None
        if self.normal_maps is not None:
            dark, middle = self.normal_maps.of(sample.match.class_name, sample.modality_names) or (None, None)
        if threshold is not None:
            middle = threshold.value
            if isinstance(threshold, SensorThreshold) and threshold.usual is not None:
                dark = threshold.usual
        if middle is None:
            return None
        if dark is None or dark >= middle:
            return (0.5 * middle, 1.5 * middle) if middle > 0 else None
        return dark, 2 * middle - dark

    def _threshold(self, sample: PreparedSample) -> tuple[Threshold | None, str | None, list[str]]:
        """The threshold that holds for a sample, whose it is, and what to say about it."""
        known, missing, asked = sample.match.class_name, sample.match.missing, sample.asked_class
        named = asked is not None and not asked.endswith("/")
        notes = [f"class {asked} is not one that the model was trained on"] if named and not known else []
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
                return None, None, [*notes, "no threshold holds: where to look is not known without the class: name it"]
            return None, None, [*notes, "no threshold holds for another region of interest: calibrate with it"]
        if self.engine.looks_at_class and known is None:
            return None, None, [*notes, "no threshold holds where the class is not known: name it"]
        threshold = self._of_sensors(known if own else None, sample)
        if threshold is None:
            # A map adds up over modalities, so that scores of others are of another size.
            return None, None, [*notes, self._calibrated_with(known if own else None, bool(missing))]
        if not own:
            notes.append("decided by the threshold of all classes")
        if note := self.thresholds.precision_note(self.engine.precision):
            notes.append(note)
        if threshold.fpr_bound > self.thresholds.false_alarm_rate:
            rate = f"{threshold.fpr_bound:.3g}"
            notes.append(f"{threshold.images} calibration images promise a false-alarm rate of {rate} only")
        return threshold, known if own else ALL_CLASSES, notes

    def is_borrowed(self, class_name: str) -> bool:
        """Whether the threshold of ``DATASET/CLASS``, one added after training, is borrowed from other classes."""
        return class_name in self.added and not (self.thresholds and class_name in self.thresholds.classes)

    def _borrowed(
        self, class_name: str, sample: PreparedSample, notes: list[str]
    ) -> tuple[Threshold | None, str | None, list[str]]:
        """As ``_threshold``, of a class whose threshold promises nothing."""
        added = self.added[class_name]
        if self.catalogue.rois.of(class_name) is not None:
            return None, None, [*notes, "no threshold holds for another region of interest: calibrate with it"]
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


def _seen(prediction: Prediction) -> Seen:
    """What a monitor is told of it, now."""
    return Seen(
        prediction.name,
        datetime.now(UTC).isoformat(timespec="seconds"),
        prediction.class_name,
        prediction.modalities,
        prediction.score,
        prediction.anomalous,
        prediction.statistics or {},
    )


def _misaligned(overlaps: Mapping[str, Overlap], threshold: Threshold | None) -> tuple[str, ...]:
    usual = threshold.edge_gain if isinstance(threshold, SensorThreshold) else None
    return tuple(name for name, overlap in overlaps.items() if overlap.is_misaligned(usual))


def _misaligned_notes(sample: PreparedSample, names: Sequence[str]) -> list[str]:
    first = sample.modality_names[0]
    return [
        f"{name} and {first} are perhaps misaligned: edges fit best where {name} is moved by "
        f"{sample.overlaps[name].down:+.1%} of the height and {sample.overlaps[name].right:+.1%} of the width"
        for name in names
    ]


def _views_notes(sample: PreparedSample) -> list[str]:
    """What one should know of how an image of this size is looked at."""
    shrinking, first = min(view.shrinking for view in sample.views), sample.views[0].source
    notes = []
    if shrinking > TOO_SMALL:
        notes.append(f"made {shrinking:.0f} times smaller, which loses defects of a few pixels; tiles would not")
    if len(sample.views) == 1 and (first.height, first.width) != sample.size:
        notes.append("looked at in the middle only, by data.aspect crop")
    return notes


def _started(
    samples: Iterable[InputSample], prepare: Callable[[InputSample], PreparedSample], pool: ThreadPoolExecutor
) -> Iterator[tuple[str, Future[PreparedSample]]]:
    """The name of each sample, and what it is being read to; an error of ``samples`` itself comes last, as a future."""
    try:
        for sample in samples:
            yield sample.name, pool.submit(prepare, sample)
    except Exception as error:
        failed: Future[PreparedSample] = Future()
        failed.set_exception(error)
        yield "", failed


def _broken(reading: Sequence[tuple[str, Future[PreparedSample]]]) -> list[tuple[str, ValueError]]:
    """Name and error of each sample that can't be read."""
    found: list[tuple[str, ValueError]] = []
    _read(reading, lambda name, error: found.append((name, error)))
    return found


def _read(
    reading: Sequence[tuple[str, Future[PreparedSample]]], on_skip: OnSkip | None
) -> tuple[list[PreparedSample], Exception | None]:
    """The samples up to the first error that is not skipped, and that error."""
    prepared: list[PreparedSample] = []
    for name, future in reading:
        try:
            prepared.append(future.result())
        except Exception as error:
            if on_skip is None or not name or not isinstance(error, ValueError):
                return prepared, error
            on_skip(name, error)
    return prepared, None
