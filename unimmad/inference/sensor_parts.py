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
from unimmad.evaluation.sensor_shares import joined_shares
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
    scores, shares_of_views = [view.score for view in views], [view.shares_M for view in views]
    shares = joined_shares(scores, shares_of_views, sample.views, sample.size)
    maps = {}
    if len(views) == 1 and (parts_MHW := views[0].parts_MHW) is not None:
        for name, part_HW in zip(names, parts_MHW, strict=True):
            stored_HW = put_back(part_HW.numpy(), sample.views[0], sample.size)
            if sample.look is not None:
                stored_HW = stored_HW * sample.look.stored().numpy()
            maps[name] = stored_HW
    return SensorParts(None if shares is None else dict(zip(names, shares, strict=True)), maps)
