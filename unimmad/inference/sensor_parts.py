"""What each modality has to do with a sample's score: its share, and its part of the map.

Both follow the score's own rule. A map is joined from its modalities' maps (the root of the sum of squares, a sum, a
maximum); each modality's part of it is what it adds there, and the parts add up to the map. The score is the mean of
the largest pixels; a share is what a modality's part has in the mean of these same pixels. Of tiles it is that of the
tile with the highest score; beside a whole image both count by their scores.

Letters: M modalities of a sample, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unimmad.data.views import put_back
from unimmad.inference.reading import PreparedSample


class OfView(NamedTuple):
    """What is known of one view once it is scored."""

    score: float
    shares_M: tuple[float, ...] | None
    """None where the method can't say it."""
    parts_MHW: Tensor | None
    """Of the view's map."""


class SensorParts(NamedTuple):
    """What is known of a sample."""

    shares: dict[str, float] | None
    """By modality name, adding up to 1; None where the method can't say it."""
    maps: dict[str, NDArray[np.float32]]
    """Each modality's part of the map, [H, W]; of samples of several modalities that are looked at by one view."""


def sensor_parts(sample: PreparedSample, views: Sequence[OfView]) -> SensorParts:
    """What a sample's views say together."""
    names = sample.modality_names
    if len(names) == 1:
        return SensorParts({names[0]: 1.0}, {})
    shares = _joined([view.score for view in views], [view.shares_M for view in views], _whole_at(sample))
    maps = {}
    if len(views) == 1 and (parts_MHW := views[0].parts_MHW) is not None:
        for name, part_HW in zip(names, parts_MHW, strict=True):
            stored_HW = put_back(part_HW.numpy(), sample.views[0], sample.size)
            if sample.look is not None:
                stored_HW = stored_HW * sample.look.stored().numpy()
            maps[name] = stored_HW
    return SensorParts(None if shares is None else dict(zip(names, shares, strict=True)), maps)


def _whole_at(sample: PreparedSample) -> int | None:
    """Which of several views shows the whole image; None where none does."""
    if len(sample.views) == 1:
        return None
    return next(
        (at for at, view in enumerate(sample.views) if (view.source.height, view.source.width) == sample.size), None
    )


def _joined(
    scores: Sequence[float], shares: Sequence[tuple[float, ...] | None], whole_at: int | None
) -> tuple[float, ...] | None:
    known = [one for one in shares if one is not None]
    if len(known) < len(shares):
        return None
    best = max((at for at in range(len(scores)) if at != whole_at), key=lambda at: scores[at])
    total = scores[best] + (0 if whole_at is None else scores[whole_at])
    if whole_at is None or not 0 < total < np.inf:
        return known[best]
    pairs = zip(known[best], known[whole_at], strict=True)
    return tuple((scores[best] * tile + scores[whole_at] * whole) / total for tile, whole in pairs)
