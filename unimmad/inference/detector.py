"""``unimmad.Detector``: a trained model that scores one's own images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from unimmad.checkpoint.added_classes import AddedClass, with_added_classes
from unimmad.checkpoint.feedback import load_feedback
from unimmad.checkpoint.folder import find_checkpoint
from unimmad.checkpoint.grown_banks import banked_by_class, with_feedback
from unimmad.checkpoint.loading import LoadedCheckpoint, load_checkpoint
from unimmad.checkpoint.monitoring import MONITORING_NAME, MonitoringReference, load_reference
from unimmad.checkpoint.normal_maps import NormalMaps, load_normal_maps
from unimmad.checkpoint.thresholds import Thresholds, load_thresholds
from unimmad.config import Precision, TileSettings
from unimmad.evaluation.geometry import scoring_geometry, with_tiles
from unimmad.evaluation.scoring import check_scored, named_device
from unimmad.inference.catalogue import Catalogue
from unimmad.inference.catalogue_sources import checkpoint_catalogue
from unimmad.inference.deciding import Decider, map_limits, misaligned, misaligned_notes, views_notes
from unimmad.inference.engines import Engine, ModelEngine, OnnxEngine
from unimmad.inference.inputs import ImageSource, InputSample
from unimmad.inference.measuring import compared_with
from unimmad.inference.prediction import Prediction
from unimmad.inference.reading import PreparedSample, prepare_sample
from unimmad.inference.reading_ahead import READERS, OnSkip, broken, read, started
from unimmad.inference.sensor_parts import SensorParts
from unimmad.inference.view_scores import scored_samples
from unimmad.monitoring.monitor import DEFAULT_FALSE_ALARMS, DEFAULT_SHARE, DriftMonitor, Seen
from unimmad.serialization.text import shown

DEFAULT_BATCH_SIZE = 8


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
        grew: bool = False,
        in_banks: Mapping[str, Set[str]] | None = None,
    ) -> None:
        """See ``from_checkpoint`` and ``from_onnx``, which put these together.

        ``model_digest`` differs for models that give other numbers; ``normal_maps`` are for the colours of pictures;
        ``reference`` is what calibration images were like; ``own_tiles`` are what thresholds were calibrated by that do
        not say it; None: those of the engine; ``added`` are the classes added after training, which the engine's model
        and the catalogue know; ``grew``: banks did, since calibration; ``in_banks``: by class, digests of the images
        that its bank was made of after training, as far as they are known.
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
        self.grew = grew
        self.in_banks = dict(in_banks or {})

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
        loaded = load_checkpoint(find_checkpoint(Path(path)), verify=verify)
        return cls.of_loaded(loaded, data=data, device=chosen, precision=precision, roi=roi, tiles=tiles)

    @classmethod
    def of_loaded(
        cls,
        loaded: LoadedCheckpoint,
        *,
        device: torch.device,
        data: Sequence[Path] | None = None,
        precision: Precision | None = None,
        roi: Path | None = None,
        tiles: str | None = None,
    ) -> Detector:
        """``from_checkpoint``, of one that is loaded; its model becomes the detector's.

        Raises:
            ValueError: as ``from_checkpoint``.
        """
        checkpoint = with_feedback(with_added_classes(loaded))
        thresholds = load_thresholds(checkpoint.folder)
        catalogue = checkpoint_catalogue(checkpoint, data, thresholds)
        catalogue = catalogue.with_classes({name: one.entry.dataset for name, one in checkpoint.added.items()})
        own = checkpoint.recipe.evaluation.tiles
        recipe = with_tiles(checkpoint.recipe, None if tiles is None else TileSettings.parse(tiles))
        engine = ModelEngine(checkpoint.model, recipe.evaluation, device, precision, scoring_geometry(recipe))
        catalogue = catalogue if roi is None else catalogue.with_rois(roi)
        own_model = recipe.model.model_dump_json(exclude_defaults=True)  # not all of it is in the weights
        digest = checkpoint.weights_digest + own_model + recipe.evaluation.model_dump_json() + recipe.data.aspect
        reference = load_reference(checkpoint.folder)
        if reference is not None and reference.described.weights != loaded.weights_digest:
            raise ValueError(
                f"{checkpoint.folder / MONITORING_NAME}: it is of other weights than the checkpoint's; calibrate "
                "again, or remove it"
            )
        normal_maps = load_normal_maps(checkpoint.folder) if own.same_views(recipe.evaluation.tiles) else None
        feedback, added = load_feedback(checkpoint.folder, None, thresholds), checkpoint.added
        grew = any(version.grown for version in feedback.counted)
        held = banked_by_class(feedback, added)
        return cls(engine, catalogue, thresholds, digest, normal_maps, reference, own, added, grew, held)

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
                scored as well, and decided by the threshold of all classes (not decided, where the method's scores
                depend on the class); so is ``DATASET/``, which tells the dataset alone.
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
            ahead = started(samples, prepare, pool)
            reading = list(islice(ahead, batch_size))
            while reading:
                prepared, error = read(reading, on_skip)
                reading = [] if error else list(islice(ahead, batch_size))
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
            ahead = started(samples, prepare, pool)
            while reading := list(islice(ahead, DEFAULT_BATCH_SIZE)):
                yield from broken(reading)

    def prepare(
        self, sample: InputSample, *, class_name: str | None = None, with_pictures: bool = False
    ) -> PreparedSample:
        """Decode one sample: the first half of ``predict``, for callers with threads and batches of their own.

        Raises:
            ValueError: as ``predict``, but for what is not finite.
        """
        engine = self.engine
        size, geometry = engine.image_size, engine.geometry
        prepared = prepare_sample(sample, self.catalogue, class_name, size, with_pictures, geometry, self.in_banks)
        self.engine.check(prepared)
        return prepared

    def score_prepared(
        self, samples: Sequence[PreparedSample], batch_size: int = DEFAULT_BATCH_SIZE
    ) -> Iterator[Prediction | ValueError]:
        """The other half: each sample's prediction, or what makes its map or score unusable, in their order.

        They may be of several classes, each as ``prepare`` was told; ``batch_size`` views are scored at once.
        """
        compared = compared_with(self.reference if self.measures else None, self.engine, samples)
        scored = scored_samples(self.engine, samples, batch_size)
        for sample, of_images, of_sample in zip(samples, compared, scored, strict=True):
            try:
                prediction = self._prediction(sample, *of_sample, of_images)
            except ValueError as unusable:
                yield unusable
            else:
                if self.monitor is not None:
                    self.monitor.add(_seen(prediction))
                yield prediction

    def _prediction(
        self,
        sample: PreparedSample,
        map_HW: NDArray[np.float32],
        score: float,
        parts: SensorParts,
        statistics: Mapping[str, Mapping[str, float]] | None,
    ) -> Prediction:
        check_scored(sample.name, map_HW, score)
        decider = Decider(self.engine, self.catalogue, self.thresholds, self.own_tiles, self.added, self.grew)
        threshold, of, notes = decider.threshold(sample)
        apart = misaligned(sample.overlaps, threshold)
        return Prediction(
            name=sample.name,
            class_name=sample.match.class_name,
            modalities=sample.modality_names,
            files=sample.files,
            score=score,
            map_HW=map_HW,
            threshold=None if threshold is None else threshold.value,
            threshold_of=of,
            notes=(*sample.notes, *views_notes(sample), *misaligned_notes(sample, apart), *notes),
            pictures=sample.pictures,
            weights_HW=None if sample.look is None else sample.look.stored().numpy(),
            roi=None if (roi := self.catalogue.rois.of(sample.match.class_name)) is None else roi.digest,
            precision=self.engine.precision,
            threshold_promised=None if of is None else decider.promises(sample, of),
            limits=map_limits(self.normal_maps, sample, threshold),
            statistics=statistics,
            shares=parts.shares,
            modality_maps=parts.maps,
            overlaps=sample.overlaps,
            misaligned=apart,
        )


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
