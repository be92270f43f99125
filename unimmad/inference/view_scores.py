"""Scores samples by their views: each one's map and score, and what its modalities have to do with them.

Letters: B views at once, M modalities of a sample, H x W pixels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from unimmad.data.views import View
from unimmad.evaluation.scoring import maps_and_scores, shares_of_score
from unimmad.evaluation.tiling import Cutting, scored_by_views
from unimmad.inference.engines import Engine
from unimmad.inference.reading import PreparedSample
from unimmad.inference.sensor_parts import OfView, SensorParts, sensor_parts


def scored_samples(
    engine: Engine, samples: Sequence[PreparedSample], batch_size: int
) -> Iterator[tuple[NDArray[np.float32], float, SensorParts]]:
    """The map [H, W] of each sample, in its stored size, its score, and what its modalities have to do with them.

    Args:
        engine: what scores.
        samples: of any classes and sizes.
        batch_size: views that are scored at once, of several samples where they are small.
    """
    images = (Cutting(sample.size, sample.views, sample.cut, sample.look) for sample in samples)
    views: deque[OfView] = deque()
    found = scored_by_views(images, partial(_score, engine, views), batch_size)
    for sample, (map_HW, score) in zip(samples, found, strict=True):
        yield map_HW, score, sensor_parts(sample, [views.popleft() for _ in sample.views])


def _score(
    engine: Engine, seen: deque[OfView], cut: list[PreparedSample], views: list[View]
) -> tuple[NDArray[np.float32], Sequence[float]]:
    """Maps and scores of views; what their modalities have to do with them goes into ``seen``."""
    if any(len(sample.modalities) > 1 for sample in cut):
        maps_BHW, scores_B, parts = engine.score_with_parts(cut)
    else:
        (maps_BHW, scores_B), parts = engine.score(cut), None
    settings, weights = engine.settings, [sample.weights_HW for sample in cut]
    _, scores_B = maps_and_scores(maps_BHW, settings, weights, views, scores_B)
    for place, (sample, view) in enumerate(zip(cut, views, strict=False)):
        parts_MHW = None if parts is None else parts[place]
        shares = None
        if parts_MHW is not None:
            shares = shares_of_score(maps_BHW[place], parts_MHW, settings, sample.weights_HW, view)
        kept = parts_MHW if len(sample.views) == 1 and len(sample.modalities) > 1 else None
        seen.append(OfView(float(scores_B[place]), shares, kept))
    return maps_BHW.numpy(), scores_B.tolist()
