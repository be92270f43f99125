"""What is collected of a class while it is scored, and the thread that collects it.

Letters: B samples of a batch, I samples of a class, T tokens, G gates, K routed leaders, H x W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from unimmad.data.sample import Batch, Sample
from unimmad.data.views import Resolution
from unimmad.evaluation.held_thresholds import HeldThresholds
from unimmad.evaluation.scoring import BatchScores, check_scored
from unimmad.evaluation.tiling import Canvas, OriginalScores
from unimmad.metrics.at_threshold import AtThreshold, count_image
from unimmad.metrics.metrics import MetricAccumulator
from unimmad.metrics.pixel_curves import PixelCurves
from unimmad.report.expert_usage import UsageCounter, chosen_leaders
from unimmad.report.report import ClassResult
from unimmad.report.scored_class import Resizing, ScoredClass
from unimmad.report.sensor_sets import Sensors, SensorSet, joined_metrics, most_shown

MOST_WAITING: dict[Resolution, int] = {"model": 4, "original": 1}
"""Batches of maps that may wait for the metrics; the model pauses beyond that, so memory stays bounded."""


@dataclass(frozen=True)
class ScoredBatch:
    """A batch's samples and what the model said of them, on the host."""

    samples: tuple[Sample, ...]
    """Without their images; masks and weights are of the maps' sizes."""
    maps: Sequence[NDArray[np.float32]]
    """B maps, each H x W: the model's size, or where pixels are measured at their original size what of each image is
    scored, as it is stored."""
    scores: tuple[float, ...]
    """B image scores."""
    leaders_TGK: NDArray[np.int64] | None
    """See ``chosen_leaders``; None where the method routes nothing."""
    resolution: Resolution = "model"
    """Of the maps."""

    @classmethod
    def of(cls, batch: Batch, scored: BatchScores | OriginalScores) -> ScoredBatch:
        """From whatever device, which is waited for.

        Raises:
            ValueError: a value of a map, or a score, is NaN or infinite; names the sample.
        """
        leaders_TGK = chosen_leaders(scored.routings) if scored.routings else None
        if isinstance(scored, BatchScores):
            found = cls(
                batch.samples, list(scored.maps_BHW.cpu().numpy()), tuple(scored.scores_B.tolist()), leaders_TGK
            )
        else:
            placed = list(map(_at_original, batch.samples, scored.canvases))
            scores_B = torch.tensor([canvas.score for canvas in scored.canvases])
            found = cls(
                tuple(sample for sample, _ in placed),
                [map_HW for _, map_HW in placed],
                tuple(scores_B.tolist()),
                leaders_TGK,
                "original",
            )
        for sample, map_HW, score in zip(found.samples, found.maps, found.scores, strict=True):
            check_scored(f"{sample.class_name} {sample.key}", map_HW, score)
        return found


def _at_original(sample: Sample, canvas: Canvas) -> tuple[Sample, NDArray[np.float32]]:
    """A sample with the weights of what is scored of its image, as it is stored, and the map of that."""
    map_HW, weights_HW = canvas.joined()[0], canvas.weights()
    weights = None if weights_HW is None else torch.from_numpy(weights_HW[canvas.seen.pixels])
    return replace(sample, look=None, weights_HW=weights), map_HW[canvas.seen.pixels]


class ClassScores:
    """A class's metrics, image scores and routing, filled batch by batch.

    Images of other modalities have scores of another size, so that each set of modalities is measured within itself.
    """

    def __init__(
        self,
        class_name: str,
        field: str,
        leaders: int,
        scratch_dir: Path | None,
        thresholds: HeldThresholds | None = None,
    ) -> None:
        """``class_name`` is ``DATASET/CLASS``; ``leaders`` are those of each gate, 0 where there is no gate;
        ``scratch_dir``: see ``MetricAccumulator``; ``thresholds`` to count by, if any."""
        self.class_name = class_name
        self.field = field
        self._scratch_dir = scratch_dir
        self._metrics: dict[Sensors, MetricAccumulator] = {}
        self._usage = UsageCounter(class_name, leaders) if leaders else None
        self._thresholds = thresholds
        self._at_threshold = AtThreshold()
        self._outside = 0
        self._image_scores: list[float] = []
        self._samples: list[tuple[str, str, bool, Sensors]] = []
        self._resizing = Resizing()

    def add(self, batch: ScoredBatch) -> None:
        """Take in a batch."""
        if self._usage is not None and batch.leaders_TGK is not None:
            self._usage.add([sample for sample in batch.samples for _ in range(sample.views)], batch.leaders_TGK)
        padded = batch.resolution == "model"
        for sample, map_HW, score in zip(batch.samples, batch.maps, batch.scores, strict=True):
            mask_HW = None if sample.mask_HW is None else sample.mask_HW.numpy()
            look_HW = None if sample.weights_HW is None else sample.weights_HW.numpy() > 0
            if padded and sample.view is not None and not sample.view.fills:  # without its padding
                seen = sample.view.target.pixels
                map_HW = map_HW[seen]
                mask_HW, look_HW = (None if one is None else one[seen] for one in (mask_HW, look_HW))
            if _marked_outside_alone(mask_HW, look_HW):
                self._outside += 1
                continue
            name = f"{sample.class_name} {sample.key}"
            if sample.modalities not in self._metrics:
                self._metrics[sample.modalities] = MetricAccumulator(self._scratch_dir)
            metrics = self._metrics[sample.modalities]
            metrics.add(map_HW, mask_HW, score, int(sample.anomalous), name=name, look_HW=look_HW)
            if self._thresholds is not None:
                image, pixel = self._thresholds.limits(sample)
                self._at_threshold += count_image(map_HW, mask_HW, score, int(sample.anomalous), image, pixel, look_HW)
            self._image_scores.append(score)
            self._samples.append((sample.key, sample.defect, sample.anomalous, sample.modalities))
            self._resizing = _with_sample(self._resizing, sample)

    def scored(self) -> ScoredClass:
        """The finished class."""
        dataset, _, short_name = self.class_name.partition("/")
        sets = tuple(
            SensorSet(sensors, metrics.normal, metrics.anomalous, metrics.compute())
            for sensors, metrics in self._metrics.items()
        )
        result = ClassResult(
            dataset=dataset,
            field=self.field,
            class_name=short_name,
            normal=sum(one.normal for one in sets),
            anomalous=sum(one.anomalous for one in sets),
            metrics=joined_metrics(sets),
            at_threshold=None if self._thresholds is None else self._at_threshold,
            sensor_sets=sets if len(sets) > 1 else (),
        )
        return ScoredClass(
            result=result,
            image_scores=np.array(self._image_scores, dtype=np.float64),
            labels=np.array([anomalous for _, _, anomalous, _ in self._samples], dtype=bool),
            keys=tuple(key for key, *_ in self._samples),
            defects=tuple(defect for _, defect, *_ in self._samples),
            sensors=tuple(sensors for *_, sensors in self._samples),
            curves=self._curves(sets),
            usage=None if self._usage is None else self._usage.usage(),
            resizing=self._resizing,
            outside=self._outside,
        )

    def _curves(self, sets: Sequence[SensorSet]) -> PixelCurves | None:
        """Those of the images that curves are drawn of; None where all images were left out."""
        return self._metrics[most_shown(sets).modalities].curves() if sets else None


def _with_sample(before: Resizing, sample: Sample) -> Resizing:
    """One sample more of a class."""
    loss, shrinking = sample.mask_loss, 1.0 if sample.view is None else sample.view.shrinking
    smaller = shrinking > before.shrinking
    height, width = sample.stored_size if smaller else (before.height, before.width)
    return Resizing(
        shrinking=shrinking if smaller else before.shrinking,
        height=height,
        width=width,
        regions=before.regions + loss.regions,
        lost=before.lost + loss.lost,
        emptied=before.emptied + loss.empties,
    )


def _marked_outside_alone(mask_HW: NDArray[np.bool_] | None, look_HW: NDArray[np.bool_] | None) -> bool:
    """Such an image is neither normal nor one whose anomaly is to be found."""
    return mask_HW is not None and look_HW is not None and bool(mask_HW.any()) and not (mask_HW & look_HW).any()


class MetricsThread:
    """One thread that collects maps, at most some batches behind the model. Use it in a ``with`` statement."""

    def __init__(self, most_waiting: int) -> None:
        """``most_waiting``: batches."""
        self._most_waiting = most_waiting
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> MetricsThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(cancel_futures=True)

    def add(self, scores: ClassScores, batch: Callable[[], ScoredBatch]) -> None:
        """Hand a batch over, made in the thread; waits where too many are waiting, and raises what an earlier one
        raised."""
        self._waiting.append(self._executor.submit(lambda: scores.add(batch())))
        while len(self._waiting) > self._most_waiting or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def finish(self, scores: ClassScores) -> Future[ScoredClass]:
        """The class's result once all that was handed over is in; raises what any of its batches raised."""
        added = tuple(self._waiting)
        self._waiting.clear()

        def finished() -> ScoredClass:
            for batch in added:  # done already, since one thread does everything in turn
                batch.result()
            return scores.scored()

        return self._executor.submit(finished)
