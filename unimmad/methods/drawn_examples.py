"""What a discriminator learns from: distances of normal images, as they are and with anomalies drawn onto them.

Letters: V versions of an image, C = 3 channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from unimmad.data.drawn_anomalies import drawn_anomaly
from unimmad.methods.banks import Banks
from unimmad.methods.discriminator import DrawnExamples, logarithms
from unimmad.methods.image_sample import KeptImage

VARIANTS = 3
"""Anomalies that are drawn onto an image, one at a time."""


@torch.no_grad()
def drawn_examples(
    images: Sequence[KeptImage], levels: Sequence[Banks], patches_of: Callable[[Tensor], list[Tensor]], seed: int
) -> DrawnExamples | None:
    """Of each image, as it is and with anomalies drawn onto it, distances to the banks as if its photograph were in
    none.

    Args:
        images: some of those that the banks were made of.
        levels: banks of each level, right after ``finish``.
        patches_of: what the banks of each level hold of images [V, C, H, W] on their device, [V, h, w, C_l].
        seed: of what is drawn.

    Returns:
        The examples, on the banks' device; None where no class has two photographs.
    """
    random, device = np.random.default_rng(seed), levels[0].device
    found: list[tuple[Tensor, Tensor]] = []
    for kept in tqdm(images, desc="draw anomalies", unit="image"):
        number = levels[0].names.index(kept.bank)
        with ExitStack() as left_out:
            for level in levels:
                left_out.enter_context(level.leave_out(kept.key))
            if not levels[0].has_other_rows(number):
                continue
            others = [images[place].image_CHW for place in random.integers(len(images), size=VARIANTS)]
            drawn = [drawn_anomaly(kept.image_CHW, other_CHW, random) for other_CHW in others]
            versions_VCHW = torch.stack([kept.image_CHW, *(version_CHW for version_CHW, _ in drawn)])
            patches = patches_of(versions_VCHW.to(device))
            ratios = [level.scores(patches_VhwC, number) for level, patches_VhwC in zip(levels, patches, strict=True)]
            masks_VHW = torch.stack([torch.zeros_like(drawn[0][1]), *(mask_HW for _, mask_HW in drawn)])
            found.append((logarithms(ratios), _shares(masks_VHW, ratios[0].shape[-1]).to(device)))
    return DrawnExamples(*map(torch.cat, zip(*found, strict=True))) if found else None


def _shares(masks_VHW: Tensor, side: int) -> Tensor:
    """Of each position's pixels those that are marked, 0 to 1: [V, side, side]."""
    return F.adaptive_avg_pool2d(masks_VHW[:, None].float(), side)[:, 0]
