"""Anomalies drawn onto images of normal samples, and where they are.

A region of random outline (noise above a level, or an ellipse) is filled with something that is not there: another
place of the image, another image, another brightness, a blur, noise; mixed with what is there.

Letters: C = 3 channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

LEAST_PIXELS, MOST_SHARE = 12, 0.3
"""Of a region: pixels at least (at 128 x 128), share of the image at most."""
REFERENCE_AREA = 128 * 128
LEAST_CHANGE = 0.1
"""Mean over channels, in standard deviations of natural images, below which a pixel counts as unchanged."""


def drawn_anomaly(image_CHW: Tensor, other_CHW: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """An image with an anomaly, and its mask.

    Args:
        image_CHW: normalised, float32, on the CPU, square.
        other_CHW: another one, whose parts may be pasted.
        random: all choices come from it.

    Returns:
        float32 [C, H, W], and bool [H, W], true where the image was changed visibly.
    """
    region_HW = _region(image_CHW.shape[-1], random)
    filled_CHW = _FILLINGS[random.choice(len(_FILLINGS), p=_SHARES)](image_CHW, other_CHW, random)
    opacity = random.uniform(0.3, 1)
    drawn_CHW = torch.where(region_HW, image_CHW.lerp(filled_CHW, opacity), image_CHW)
    return drawn_CHW, region_HW & ((drawn_CHW - image_CHW).abs().mean(0) > LEAST_CHANGE)


def _region(side: int, random: np.random.Generator) -> Tensor:
    least = max(1, LEAST_PIXELS * side**2 // REFERENCE_AREA)
    while True:
        region_HW = _blob(side, random) if random.random() < 0.6 else _ellipse(side, random)
        if least <= region_HW.sum() <= MOST_SHARE * side**2:
            return torch.from_numpy(region_HW)


def _blob(side: int, random: np.random.Generator) -> np.ndarray:
    """Where smooth noise is high; mostly one of its islands alone."""
    cells = int(random.choice([4, 6, 8, 12, 16]))
    noise = torch.from_numpy(random.standard_normal((1, 1, cells, cells), dtype=np.float32))
    smooth_HW = F.interpolate(noise, size=(side, side), mode="bicubic", align_corners=True)[0, 0].numpy()
    region_HW: np.ndarray = smooth_HW > random.uniform(0.8, 1.8)
    labels_HW, islands = ndimage.label(region_HW)
    return labels_HW == random.integers(1, islands + 1) if islands and random.random() < 0.7 else region_HW


def _ellipse(side: int, random: np.random.Generator) -> np.ndarray:
    """Half axes from 2% to 25% of the side: spots, scratches."""
    half_axes, centre, angle = random.uniform(0.02, 0.25, 2), random.uniform(0.1, 0.9, 2), random.uniform(0, math.pi)
    y_HW, x_HW = np.meshgrid(*[np.linspace(0, 1, side)] * 2, indexing="ij")
    y_HW, x_HW = y_HW - centre[0], x_HW - centre[1]
    along_HW = x_HW * math.cos(angle) + y_HW * math.sin(angle)
    across_HW = y_HW * math.cos(angle) - x_HW * math.sin(angle)
    inside_HW: np.ndarray = (along_HW / half_axes[0]) ** 2 + (across_HW / half_axes[1]) ** 2 < 1
    return inside_HW


def _elsewhere(image_CHW: Tensor, _other: Tensor, random: np.random.Generator) -> Tensor:
    side = image_CHW.shape[-1]
    shifts = random.integers(-(side // 3), side // 3 + 1, 2).tolist()
    return _turned(image_CHW, random).roll(shifts, (1, 2))


def _other(_image: Tensor, other_CHW: Tensor, random: np.random.Generator) -> Tensor:
    return _turned(other_CHW, random)


def _brightness(image_CHW: Tensor, _other: Tensor, random: np.random.Generator) -> Tensor:
    return image_CHW + random.choice([-1, 1]) * random.uniform(0.3, 1.5) * max(0.2, float(image_CHW.std()))


def _blur(image_CHW: Tensor, _other: Tensor, _random: np.random.Generator) -> Tensor:
    return F.avg_pool2d(F.pad(image_CHW[None], (4,) * 4, mode="replicate"), 9, stride=1)[0]


def _noise(image_CHW: Tensor, _other: Tensor, random: np.random.Generator) -> Tensor:
    noise_CHW = torch.from_numpy(random.standard_normal(image_CHW.shape, dtype=np.float32))
    return image_CHW + noise_CHW * image_CHW.std() * random.uniform(0.3, 1)


def _turned(image_CHW: Tensor, random: np.random.Generator) -> Tensor:
    """By a multiple of a right angle."""
    return torch.rot90(image_CHW, int(random.integers(4)), (1, 2))


_Filling = Callable[[Tensor, Tensor, np.random.Generator], Tensor]
_FILLINGS: tuple[_Filling, ...] = (_elsewhere, _other, _brightness, _blur, _noise)
_SHARES = (0.35, 0.25, 0.25, 0.08, 0.07)
