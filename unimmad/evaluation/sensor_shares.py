"""Each modality's share of an image's score, from those of the views that it was scored by.

Letters: M modalities of a sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unimmad.data.views import View

Shares = tuple[float, ...]
"""M, adding up to 1."""


def joined_shares(
    scores: Sequence[float], shares: Sequence[Shares | None], views: Sequence[View], size: tuple[int, int]
) -> Shares | None:
    """By the score's own rule: of tiles the shares of the one with the highest score; beside the whole image both count
    by their scores. None where one is not known.

    Args:
        scores: of each view.
        shares: of each view.
        views: by which the image was scored.
        size: its height and width.
    """
    known = [one for one in shares if one is not None]
    if len(known) < len(shares):
        return None
    whole_at = None
    if len(views) > 1:
        sees_all = [(view.source.height, view.source.width) == size for view in views]
        whole_at = sees_all.index(True) if any(sees_all) else None
    best = max((at for at in range(len(scores)) if at != whole_at), key=lambda at: scores[at])
    total = scores[best] + (0 if whole_at is None else scores[whole_at])
    if whole_at is None or not 0 < total < np.inf:
        return known[best]
    pairs = zip(known[best], known[whole_at], strict=True)
    return tuple((scores[best] * tile + scores[whole_at] * whole) / total for tile, whole in pairs)
