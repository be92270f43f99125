"""A small network that learns from drawn anomalies what an anomaly's distances look like.

It sees nothing but distances to banks of normal patches, level by level and divided by what is usual, never an image:
so one serves all classes that it learned from. Its training images are normal ones, some with drawn anomalies
(drawn_anomalies.py), their distances measured to the patches of all other images.

Letters: N images, L levels, h x w positions of the finest level.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR

from unimmad.methods.level_maps import LEAST_RATIO

WIDTH, DILATIONS = 24, (1, 2, 4, 8)
STEPS, BATCH, WINDOW = 600, 32, 32
"""Of its training: steps, images of a batch, and the side of the windows that are cut from larger maps."""
LEARNING_RATE, WEIGHT_DECAY, LARGEST_GRADIENT = 3e-3, 1e-2, 1.0
AVERAGED = 0.99
"""Its weights are the running average of the trained ones, with this share of the old at each step."""
JITTER = 0.1
"""Standard deviation of what is added to the logarithms of an image's levels, so that small shifts say nothing."""
NORMAL_WEIGHT = 3.0
"""What the mean over normal positions counts beside that over anomalous ones."""
COVERED = 0.3
"""Share of a position's pixels from which on it is anomalous; with fewer, but some, it counts as neither."""


class Discriminator(nn.Module):
    """Distances of all levels -> how much more like an anomaly's they look than like normal ones."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        widths = [levels, *[WIDTH] * len(DILATIONS)]
        hidden = (
            (nn.Conv2d(*pair, 3, padding=step, dilation=step, padding_mode="replicate"), nn.GELU())
            for pair, step in zip(itertools.pairwise(widths), DILATIONS, strict=True)
        )
        self.layers = nn.Sequential(*itertools.chain.from_iterable(hidden), nn.Conv2d(WIDTH, 1, 1))
        self.requires_grad_(False)

    def forward(self, ratios: Sequence[Tensor]) -> Tensor:
        """Logits, float32 [N, h, w], from distances over usual ones, [N, h_l, w_l] of each level."""
        with torch.autocast(ratios[0].device.type, enabled=False):
            return self.layers(logarithms(ratios))[:, 0]


class DrawnExamples(NamedTuple):
    """What it learns from."""

    logarithms_NLhw: Tensor
    """See ``logarithms``."""
    covered_Nhw: Tensor
    """Share of each position's pixels that are anomalous, 0 to 1."""


def logarithms(ratios: Sequence[Tensor]) -> Tensor:
    """Of distances over usual ones, [N, h_l, w_l] of each level, brought to the finest level: [N, L, h, w]."""
    size = ratios[0].shape[-2:]
    levels = [F.interpolate(ratio_Nhw[:, None], size=size, mode="bilinear", align_corners=True) for ratio_Nhw in ratios]
    return torch.cat(levels, dim=1).float().clamp_min(LEAST_RATIO).log()


def fitted_discriminator(examples: DrawnExamples, seed: int) -> Discriminator:
    """Train one, on the examples' device; the same numbers for the same examples and seed.

    Raises:
        ValueError: examples are not finite.
    """
    device = examples.logarithms_NLhw.device
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        average = Discriminator(examples.logarithms_NLhw.shape[1]).to(device)
        trained = copy.deepcopy(average).requires_grad_(True)
        optimizer = torch.optim.AdamW(trained.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = OneCycleLR(optimizer, LEARNING_RATE, STEPS)
        for _ in range(STEPS):
            logits_Nhw, covered_Nhw = _batch_logits(trained, examples)
            optimizer.zero_grad()
            _loss(logits_Nhw, covered_Nhw).backward()
            nn.utils.clip_grad_norm_(trained.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            for kept, new in zip(average.parameters(), trained.parameters(), strict=True):
                kept.lerp_(new.detach(), 1 - AVERAGED)
    if not all(bool(parameter.isfinite().all()) for parameter in average.parameters()):
        raise ValueError("no discriminator can be fitted: distances are NaN or infinite; look at the images' values")
    return average


def _batch_logits(network: Discriminator, examples: DrawnExamples) -> tuple[Tensor, Tensor]:
    """Of random images, windows and quarter turns: logits and what is covered, [N, h, w] each."""
    logs_NLhw, covered_Nhw = examples
    chosen_n = torch.randint(len(logs_NLhw), (BATCH,))
    sides = [min(side, WINDOW) for side in covered_Nhw.shape[1:]]
    top, left = (
        int(torch.randint(whole - side + 1, ())) for whole, side in zip(covered_Nhw.shape[1:], sides, strict=True)
    )
    window = (..., slice(top, top + sides[0]), slice(left, left + sides[1]))
    turns = int(torch.randint(4, ()))
    jitter_N111 = JITTER * torch.randn(BATCH, logs_NLhw.shape[1], 1, 1).to(logs_NLhw.device)
    logs_NLhw = torch.rot90(logs_NLhw[chosen_n.to(logs_NLhw.device)][window] + jitter_N111, turns, (-2, -1))
    covered_Nhw = torch.rot90(covered_Nhw[chosen_n.to(logs_NLhw.device)][window], turns, (-2, -1))
    return network.layers(logs_NLhw)[:, 0], covered_Nhw


def _loss(logits_Nhw: Tensor, covered_Nhw: Tensor) -> Tensor:
    """Cross-entropy, means over anomalous and over normal positions apart."""
    anomalous_Nhw, normal_Nhw = (covered_Nhw > COVERED).float(), (covered_Nhw == 0).float()
    of_anomalous = (F.softplus(-logits_Nhw) * anomalous_Nhw).sum() / anomalous_Nhw.sum().clamp_min(1)
    of_normal = (F.softplus(logits_Nhw) * normal_Nhw).sum() / normal_Nhw.sum().clamp_min(1)
    return of_anomalous + NORMAL_WEIGHT * of_normal
