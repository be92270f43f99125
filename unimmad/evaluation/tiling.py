"""Images scored by any number of views each: cut one by one, scored in batches that views of several images share, and
put together again at the stored image's size.

Memory does not grow with the number of views: beside the images themselves there are a batch of views, and of each
image that is not finished the sum of its maps so far.

Letters: B views of a batch, S samples, H x W pixels of a stored image, h x w of the model's square.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimmad.config import EvaluationSettings, Precision
from unimmad.data.look import Look
from unimmad.data.sample import Batch, Sample, collate
from unimmad.data.views import Box, Geometry, View, largest_in_area, put_back
from unimmad.evaluation.scoring import (
    BatchScores,
    maps_and_scores,
    score_on_device,
    score_unweighed,
    shares_of_score,
)
from unimmad.evaluation.sensor_shares import Shares, joined_shares
from unimmad.model.anomaly_map import weigh
from unimmad.model.method import Method
from unimmad.model.routing import Routing

T = TypeVar("T")
Map = NDArray[np.float32]


@dataclass(frozen=True)
class Cutting(Generic[T]):
    """An image and the views that it is scored by."""

    shape: tuple[int, int]
    """H and W."""
    views: tuple[View, ...]
    cut: Callable[[View], T]
    """What is scored of a view."""
    look: Look | None = None
    """Where to look in it; None: everywhere."""


class Canvas:
    """The maps of one image's views, put together in its own geometry, and its score.

    A map of several views is blended as they come, that of one view is brought to the image's size when it is asked
    for, so that a canvas that waits takes no more memory than the model's map.
    """

    def __init__(self, shape: tuple[int, int], views: Sequence[View], look: Look | None = None) -> None:
        """``views``: all that will be added, in that order; ``look``: see ``Cutting``."""
        self.shape = shape
        self.left = len(views)
        self._look = look
        self._tiled = len(views) > 1
        self.seen = Box(0, 0, *shape) if self._tiled else views[0].source
        """What is scored of the image."""
        self._whole: tuple[Map, View, float] | None = None
        blended = shape if self._tiled else (0, 0)
        self._sum_HW: Map = np.zeros(blended, dtype=np.float32)
        self._weight_HW: Map = np.zeros(blended, dtype=np.float32)
        self._scores: list[float] = []

    def add(self, view: View, map_hw: Map, score: float) -> None:
        """Take in the next view's map, of all that it shows, and its score."""
        self.left -= 1
        if not self._tiled or (view.source.height, view.source.width) == self.shape:
            self._whole = map_hw, view, score
        else:
            seen = view.source.pixels
            weight_hw = _blending(view.source.height)[:, None] * _blending(view.source.width)
            self._sum_HW[seen] += weight_hw * put_back(map_hw, _alone(view), view.source[2:])
            self._weight_HW[seen] += weight_hw
            self._scores.append(score)
        if self._tiled and not self.left:
            self._finish()

    def joined(self) -> tuple[Map, float]:
        """The image's map [H, W] and score: of tiles the blended maps and the highest score; of tiles and the whole
        image the mean of both. The map is weighed by the region of interest, the scores are so already."""
        map_HW, weights_HW = self._put_together(), self.weights()
        if weights_HW is not None:
            map_HW = weigh(torch.from_numpy(map_HW), torch.from_numpy(weights_HW)).numpy()
        return map_HW, self.score

    @property
    def score(self) -> float:
        """The image's; see ``joined``."""
        assert not self.left, "views are missing"
        tiles = [max(self._scores)] if self._tiled else []
        scores = tiles if self._whole is None else [*tiles, self._whole[2]]
        return sum(scores) / len(scores)

    def weights(self) -> Map | None:
        """What each pixel of the image weighs, [H, W], 0 (not looked at) to 1; None where all is looked at."""
        return None if self._look is None else self._look.stored().numpy()

    def _put_together(self) -> Map:
        if self._tiled:
            return self._sum_HW
        assert self._whole is not None, "there was no view"
        return self._of_whole(*self._whole[:2])

    def _finish(self) -> None:
        """All tiles are there."""
        self._sum_HW /= self._weight_HW
        self._weight_HW = self._weight_HW[:0, :0].copy()
        if self._whole is not None:
            self._sum_HW += self._of_whole(*self._whole[:2])
            self._sum_HW /= 2

    def _of_whole(self, map_hw: Map, view: View) -> Map:
        return put_back(map_hw, view, self.shape)


def _blending(length: int) -> Map:
    """Weights of a tile's pixels along one side: they fall towards its ends, where the network sees no surroundings."""
    places = np.arange(length, dtype=np.float32)
    return np.minimum(places + 1, length - places)


def _alone(view: View) -> View:
    """A tile as if it were the whole image."""
    return replace(view, source=view.source._replace(top=0, left=0))


def scored_by_views(
    images: Iterable[Cutting[T]], score: Callable[[list[T], list[View]], tuple[Map, Sequence[float]]], batch_size: int
) -> Iterator[tuple[Map, float]]:
    """Each image's map [H, W] and score, in their order; arguments as of ``canvases_by_views``."""
    return (canvas.joined() for canvas in canvases_by_views(images, score, batch_size))


def canvases_by_views(
    images: Iterable[Cutting[T]], score: Callable[[list[T], list[View]], tuple[Map, Sequence[float]]], batch_size: int
) -> Iterator[Canvas]:
    """Each image's canvas with all of its views, in their order; an image is asked for when the turn of its first view
    comes.

    Args:
        images: what to score.
        score: maps [B, h, w] of all that was cut, and B scores of what is looked at of it.
        batch_size: views that are scored together, at most.
    """
    waiting: deque[tuple[View, Canvas]] = deque()
    canvases: deque[Canvas] = deque()

    def cuttings() -> Iterator[T]:
        for image in images:
            canvas = Canvas(image.shape, image.views, image.look)
            canvases.append(canvas)
            for view in image.views:
                waiting.append((view, canvas))
                yield image.cut(view)

    views = cuttings()
    while batch := list(islice(views, batch_size)):
        maps_Bhw, scores = score(batch, [view for view, _ in waiting])
        for map_hw, of_view in zip(maps_Bhw, scores, strict=True):
            view, canvas = waiting.popleft()
            canvas.add(view, map_hw, of_view)
        while canvases and not canvases[0].left:
            yield canvases.popleft()


def view_samples(sample: Sample, geometry: Geometry, image_size: int) -> Cutting[Sample]:
    """A sample with ``stored`` images, to be cut into samples of one view each.

    Raises:
        ValueError: the class's region of interest does not fit the images.
    """
    stored = sample.stored
    assert stored is not None, "views are cut from stored images"
    look = stored.look(geometry.outline(stored.size, image_size))

    def cut(view: View) -> Sample:
        weights_hw = None if look is None else look.of_view(view)
        return replace(sample, stored=None, images_MCHW=stored.seen(view), view=view, weights_HW=weights_hw)

    return Cutting(stored.size, geometry.views(stored.size, image_size), cut, look)


@dataclass
class _Scorer:
    """Scores samples of one view each, and keeps how they were routed."""

    model: Method
    settings: EvaluationSettings
    device: torch.device
    precision: Precision
    routings: list[Sequence[Sequence[Routing]]] = field(default_factory=list)
    shares: list[Shares | None] | None = None
    """Takes each view's shares of its score by modality, where it is a list."""
    parts: list[Tensor | None] = field(default_factory=list)
    """What each modality adds to a view's map, [M, h, w], where ``shares`` are taken; None where nobody says."""

    def __call__(self, samples: list[Sample], _: list[View]) -> tuple[Map, Sequence[float]]:
        with_parts = self.shares is not None
        scored = score_unweighed(self.model, collate(samples), self.settings, self.device, self.precision, with_parts)
        if scored.routings:
            self.routings.append(scored.routings)
        weights, views = [sample.weights_HW for sample in samples], [sample.view for sample in samples]
        scores_B = maps_and_scores(scored.maps_BHW, self.settings, weights, views, scored.scores_B)[1]
        if self.shares is not None:
            self.shares += self._shares(samples, scored)
        return scored.maps_BHW.cpu().numpy(), scores_B.tolist()

    def _shares(self, samples: list[Sample], scored: BatchScores) -> list[Shares | None]:
        if scored.parts_THW is None:
            self.parts += [None] * len(samples)
            return [None] * len(samples)
        parts = scored.parts_THW.split([len(sample.slots) for sample in samples])
        self.parts += parts
        return [
            shares_of_score(map_HW, parts_MHW, self.settings, sample.weights_HW, sample.view)
            for sample, map_HW, parts_MHW in zip(samples, scored.maps_BHW, parts, strict=True)
        ]


class StoredScores(NamedTuple):
    """What the model says of one image, in the size that it is stored in."""

    map_HW: Map
    score: float
    look: Look | None
    """Where it was looked."""
    shares: Shares | None
    """Each modality's share of the score; None where the method can't say it."""
    parts_MHW: Map | None
    """What each modality adds to the map; None of one modality, of several views, and where the method can't say it."""


def score_stored(
    model: Method,
    sample: Sample,
    settings: EvaluationSettings,
    device: torch.device,
    precision: Precision,
    geometry: Geometry,
) -> StoredScores:
    """Score one sample with ``stored`` images, by as many views as it takes."""
    cutting, shares = view_samples(sample, geometry, model.image_size), list[Shares | None]()
    scores: list[float] = []
    scorer = _Scorer(model, settings, device, precision, shares=shares)

    def score(samples: list[Sample], views: list[View]) -> tuple[Map, Sequence[float]]:
        maps_Bhw, scores_B = scorer(samples, views)
        scores.extend(scores_B)
        return maps_Bhw, scores_B

    found = next(scored_by_views([cutting], score, settings.batch_size))
    of_score = joined_shares(scores, shares, cutting.views, cutting.shape)
    parts_MHW = None
    if len(cutting.views) == 1 and len(sample.slots) > 1 and (parts_Mhw := scorer.parts[0]) is not None:
        stored = [put_back(part_hw.cpu().numpy(), cutting.views[0], cutting.shape) for part_hw in parts_Mhw]
        parts_MHW = np.stack(stored) * (1 if cutting.look is None else cutting.look.stored().numpy())
    return StoredScores(*found, cutting.look, of_score, parts_MHW)


class OriginalScores(NamedTuple):
    """What the model says of a batch, to be measured at the size that each image is stored in."""

    canvases: tuple[Canvas, ...]
    """Of each sample, with all of its views."""
    routings: Sequence[Sequence[Routing]]
    """See ``BatchScores``."""


def score_originals(
    model: Method,
    batch: Batch,
    settings: EvaluationSettings,
    device: torch.device,
    precision: Precision,
    geometry: Geometry,
) -> tuple[Batch, OriginalScores]:
    """As :func:`score_samples`, of a batch with masks at the images' own size; gives the samples without images."""
    size, scorer = model.image_size, _Scorer(model, settings, device, precision)
    if geometry.tiles is None:
        images = batch.images_TCHW.split(batch.tokens_per_sample)
        with_images = zip(batch.samples, images, strict=True)
        cuttings = [_of_one_view(replace(sample, images_MCHW=own)) for sample, own in with_images]
    else:
        cuttings = [view_samples(sample, geometry, size) for sample in batch.samples]
    samples = tuple(
        replace(sample, stored=None, views=len(cutting.views))
        for sample, cutting in zip(batch.samples, cuttings, strict=True)
    )
    canvases = tuple(canvases_by_views(cuttings, scorer, settings.batch_size))
    return replace(batch, samples=samples), OriginalScores(canvases, _joined(scorer.routings))


def _of_one_view(sample: Sample) -> Cutting[Sample]:
    """A sample that is one view already."""
    assert sample.view is not None
    return Cutting(sample.stored_size, (sample.view,), lambda _: sample, sample.look)


def at_size(map_HW: Map, look: Look | None, size: tuple[int, int]) -> tuple[Map, NDArray[np.float32] | None]:
    """An image's map at another size, and what its pixels weigh there, None where all is looked at.

    Each pixel has the largest value that is looked at in its area.
    """
    if look is None:
        return largest_in_area(map_HW, size), None
    looked_HW = np.where(look.stored().numpy() > 0, map_HW, map_HW.min())
    return largest_in_area(looked_HW, size), look.resized(size)


def score_samples(
    model: Method,
    batch: Batch,
    settings: EvaluationSettings,
    device: torch.device,
    precision: Precision,
    geometry: Geometry,
) -> tuple[Batch, BatchScores]:
    """Score a batch as ``evaluation_rounds`` gives it: samples by one view each; or, with ``stored`` images, by many,
    which share the model's batches.

    Returns:
        The batch, of many views its samples without images and with the number of their views; and maps of the model's
        size, of many views each pixel with the largest value of its area, with scores and routings.
    """
    if geometry.tiles is None:
        return batch, score_on_device(model, batch, settings, device, precision)
    size, scorer = model.image_size, _Scorer(model, settings, device, precision)
    cuttings = [view_samples(sample, geometry, size) for sample in batch.samples]
    maps, scores, samples = [], [], []
    found = scored_by_views(cuttings, scorer, settings.batch_size)
    for sample, cutting, (map_HW, score) in zip(batch.samples, cuttings, found, strict=True):
        map_hw, weights_hw = at_size(map_HW, cutting.look, (size, size))
        weights = None if weights_hw is None else torch.from_numpy(weights_hw)
        samples.append(replace(sample, stored=None, view=None, views=len(cutting.views), weights_HW=weights))
        maps.append(map_hw)
        scores.append(score)
    scored = BatchScores(torch.from_numpy(np.stack(maps)), torch.tensor(scores), _joined(scorer.routings))
    return replace(batch, samples=tuple(samples)), scored


def _joined(batches: Sequence[Sequence[Sequence[Routing]]]) -> list[list[Routing]]:
    """By level, then branch, the tokens of all batches."""
    return [[Routing.joined(branch) for branch in zip(*level, strict=True)] for level in zip(*batches, strict=True)]
