"""A few plain numbers of an image, by which a change of camera, light or focus is seen.

Letters: H x W pixels of what an image shows, S x S of a small picture, T tokens (sample, modality), F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from unimmad.checkpoint.monitoring import SMALL, Usual
from unimmad.methods.added_class import WithAddedClasses
from unimmad.model.backends.tf32 import without_tf32
from unimmad.model.method import Method

_DIGITS = 6
_LOW_PASS = 0.3
"""Cycles a pixel of a small picture beyond which what it shows counts less and less: it is noise."""
_FARTHEST = 0.2
"""Share of a picture's side that it is looked for at."""
_PLACES = 4
"""Decimal places of a shift, in sides of the picture."""
_FLAT = 1e-3
"""Of a picture's spectrum: with less it shows nothing that could lie elsewhere."""


@dataclass(frozen=True)
class ImageFacts:
    """What is found of one image without knowing its class."""

    statistics: dict[str, float]
    """Brightness, contrast, sharpness, noise."""
    picture_SS: NDArray[np.float32]
    features_F: NDArray[np.float32]
    """The teacher's, averaged over the image; F is 0 where there is no teacher."""

    def compared(self, usual: Usual | None) -> dict[str, float]:
        """All statistics that there are, rounded; those by what is usual of the class where that is known."""
        found = dict(self.statistics)
        if usual is not None:
            found["moved_down"], found["moved_right"] = shift_of(self.picture_SS, usual.picture_SS)
            if len(self.features_F) and len(self.features_F) == len(usual.mean_F):
                deviations_F = (self.features_F - usual.mean_F) / usual.deviation_F
                found["features"] = math.sqrt(float(np.mean(np.square(deviations_F, dtype=np.float64))))
        return {name: float(f"{value:.{_DIGITS}g}") for name, value in found.items()}


def image_facts(image_CHW: Tensor, features_F: NDArray[np.float32]) -> ImageFacts:
    """Of one image without padding, float32, before the mean and deviation of training are applied."""
    gray_HW = image_CHW.mean(dim=0).cpu()
    small_SS = F.interpolate(gray_HW[None, None], (SMALL, SMALL), mode="bilinear", antialias=True)[0, 0]
    return ImageFacts(plain_statistics(gray_HW.numpy()), small_SS.numpy(), features_F)


def plain_statistics(gray_HW: NDArray[np.float32]) -> dict[str, float]:
    """Mean, standard deviation, and two that a change of exposure leaves as they are, being shares of the latter:

    sharpness, the mean length of the gradient, and noise, the mean of Immerkaer's filter, to which smooth parts and
    straight edges give nothing (Computer Vision and Image Understanding 64, 1996).
    """
    image_HW = gray_HW.astype(np.float64)
    contrast = float(image_HW.std())
    found = {"brightness": float(image_HW.mean()), "contrast": contrast, "sharpness": 0.0, "noise": 0.0}
    if contrast > 0 and min(image_HW.shape) > 2:
        down_HW = image_HW[2:, 1:-1] - image_HW[:-2, 1:-1]
        right_HW = image_HW[1:-1, 2:] - image_HW[1:-1, :-2]
        rows_HW = image_HW[2:] - 2 * image_HW[1:-1] + image_HW[:-2]
        both_HW = rows_HW[:, 2:] - 2 * rows_HW[:, 1:-1] + rows_HW[:, :-2]
        found["sharpness"] = float(np.hypot(down_HW, right_HW).mean()) / 2 / contrast
        found["noise"] = math.sqrt(math.pi / 2) / 6 * float(np.abs(both_HW).mean()) / contrast
    return found


def shift_of(picture_SS: NDArray[np.float32], usual_SS: NDArray[np.float32]) -> tuple[float, float]:
    """How far a picture lies below and right of the usual one, as shares of its side, both without their borders,
    which would hold it in place: where they correlate most within ``_FARTHEST``, between pixels by a parabola.

    All of a picture counts, and large shapes most; its phases alone, or its edges, say less of images that are alike
    in their outline only.
    """
    spectra = [np.fft.fft2(_without_borders(each_SS)) for each_SS in (picture_SS, usual_SS)]
    if not all(np.abs(spectrum_SS).max() > _FLAT for spectrum_SS in spectra):
        return 0.0, 0.0
    frequency_S = np.fft.fftfreq(SMALL)
    weight_SS = np.exp(-(frequency_S[:, None] ** 2 + frequency_S**2) / (2 * _LOW_PASS**2))
    found_SS = np.fft.ifft2(weight_SS * spectra[0] * np.conj(spectra[1])).real
    steps = np.arange(-round(_FARTHEST * SMALL), round(_FARTHEST * SMALL) + 1)
    near_RR = found_SS[np.ix_(steps, steps)]
    row, column = np.unravel_index(int(near_RR.argmax()), near_RR.shape)
    down, right = steps[row] + _beside(near_RR[:, column], int(row)), steps[column] + _beside(near_RR[row], int(column))
    # Else rounding would give images that lie in place an order.
    return round(float(down) / SMALL, _PLACES) + 0.0, round(float(right) / SMALL, _PLACES) + 0.0


def _without_borders(picture_SS: NDArray[np.float32]) -> NDArray[np.float64]:
    window_S = np.minimum(1.0, 2.0 * np.hanning(len(picture_SS)))  # the middle half as it is
    return (picture_SS - picture_SS.mean(dtype=np.float64)) * window_S * window_S[:, None]


def _beside(values_R: NDArray[np.float64], place: int) -> float:
    """How far beside the largest value, at ``place``, the top of a parabola through it and its neighbours lies."""
    if not 0 < place < len(values_R) - 1:
        return 0.0
    before, top, after = values_R[place - 1 : place + 2]
    bend = before - 2 * top + after
    return float((before - after) / (2 * bend)) if bend < 0 else 0.0


@torch.inference_mode()
def pooled_features(model: Method, images_TCHW: Tensor) -> NDArray[np.float32]:
    """The features of the method's frozen teacher averaged over each image, levels side by side: [T, F].

    ``images_TCHW`` are normalised and on the model's device. F is 0 where the method has no teacher.
    """
    trained = model.base if isinstance(model, WithAddedClasses) else model
    teacher = getattr(trained, "teacher", None)
    if teacher is None:
        return np.empty((len(images_TCHW), 0), dtype=np.float32)
    with without_tf32():
        levels = teacher(images_TCHW)
    return torch.cat([_pooled(level) for level in levels], dim=1).float().cpu().numpy()


def _pooled(level: Tensor | object) -> Tensor:
    """A map [T, C, h, w] or patch tokens [T, P, D], averaged over places."""
    patches_TPD = getattr(level, "patches_NPD", None)
    if isinstance(patches_TPD, Tensor):
        return patches_TPD.mean(dim=1)
    assert isinstance(level, Tensor), "a teacher gives maps or tokens"
    return level.flatten(2).mean(dim=2)
