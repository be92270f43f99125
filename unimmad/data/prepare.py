"""Decoded arrays to the model's input: brought to a square by a view, normalised, three channels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unimmad.data.depth_image import read_depth
from unimmad.data.index import Modality, ModalityKind
from unimmad.data.value_range import unit_range
from unimmad.data.views import View, padded, resized, whole

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""The normalisation the backbones' ImageNet weights were trained with."""
_MEAN_C, _STD_C = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
LUMINANCE = (0.299, 0.587, 0.114)
"""ITU-R BT.601, as Pillow turns colour into gray."""


Place = int | View
"""What becomes of an image: the side of the square that the whole of it is stretched to, or a view."""


def prepare(
    array: np.ndarray, modality: Modality, place: Place, where: str = "image", out: Tensor | None = None
) -> Tensor:
    """Make the model's input of one decoded image (method, recipe).

    RGB and gray: bilinear resize as Pillow does it (with antialiasing, without crop), ImageNet mean and std;
    8-bit images are resized as 8 bit, others in floating point. Depth: ``DepthImage.centred``, then plain bilinear
    resize; no mean and std. Gray and depth are repeated to three channels.

    Args:
        array: H x W or H x W x C from ``decode_image``.
        modality: its kind and, for depth, scale and invalid value.
        place: what is seen of it, and in which size.
        where: the file (and sample), for messages.
        out: float32, 3 x h x w, to write the result to; None: a new one.

    Returns:
        float32, 3 x h x w.

    Raises:
        ValueError: the array's channels or values do not fit the modality's kind.
    """
    return model_input(resized_pixels(array, modality, place, where), modality.kind, out)


def model_input(pixels: np.ndarray, kind: ModalityKind, out: Tensor | None = None) -> Tensor:
    """What ``prepare`` makes of ``resized_pixels``: three channels, RGB and gray normalised.

    Args:
        pixels: uint8 or float32, H x W or H x W x 3.
        kind: of the modality.
        out: float32, 3 x H x W; filled and returned, where given.

    Returns:
        float32, 3 x H x W.
    """
    image_CHW = as_channels(pixels)
    out_CHW = torch.empty(image_CHW.shape) if out is None else out
    if kind == "depth":
        return out_CHW.copy_(image_CHW)
    # One channel at a time stays in the processor's cache.
    for image_HW, out_HW, mean, std in zip(image_CHW, out_CHW, _MEAN_C, _STD_C, strict=True):
        torch.sub(image_HW, mean, out=out_HW).div_(std)
    return out_CHW


def normalisation(kind: ModalityKind) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel: ImageNet's, or 0 and 1 for depth."""
    if kind == "depth":
        return (0.0,) * 3, (1.0,) * 3
    return IMAGENET_MEAN, IMAGENET_STD


def resize(array: np.ndarray, modality: Modality, place: Place, where: str = "image") -> Tensor:
    """``prepare`` without the mean and std: RGB and gray in 0-1, depth about its foreground's mean.

    The three channels of gray and depth are one in memory.
    """
    return as_channels(resized_pixels(array, modality, place, where))


def resized_pixels(array: np.ndarray, modality: Modality, place: Place, where: str = "image") -> np.ndarray:
    """The part of ``prepare`` that takes long; its arguments.

    Returns:
        uint8 or float32 (in 0-1; depth in centimetres), h x w or h x w x 3.

    Raises:
        ValueError: as ``prepare``.
    """
    view = whole(array.shape, place) if isinstance(place, int) else place
    return seen_pixels(stored_pixels(array, modality, where), modality.kind, view)


def stored_pixels(array: np.ndarray, modality: Modality, where: str = "image") -> np.ndarray:
    """A decoded image as its modality reads it, not resized yet: what any number of views are cut from.

    Returns:
        uint8 or float32 (in 0-1; depth in centimetres), H x W or H x W x 3.

    Raises:
        ValueError: as ``prepare``.
    """
    return read_depth(array, modality, where).centred() if modality.kind == "depth" else _pixels(array, modality, where)


def seen_pixels(pixels: np.ndarray, kind: ModalityKind, view: View) -> np.ndarray:
    """What a view sees of ``stored_pixels``, in its size. Padding is the normalisation's mean, and of depth background.

    Returns:
        uint8 or float32 as ``pixels``, h x w or h x w x 3.
    """
    if kind == "depth":
        seen = torch.from_numpy(pixels[view.source.pixels])[None, None]
        inner = F.interpolate(seen, size=view.target[2:], mode="bilinear", align_corners=False)[0, 0].numpy()
        return padded(inner, view, 0.0)
    mean = np.array(IMAGENET_MEAN) if pixels.ndim == 3 else np.mean(IMAGENET_MEAN, keepdims=True)
    if pixels.dtype == np.uint8:
        return resized(pixels, view, np.rint(mean * 255))
    if pixels.ndim == 2:
        return resized(pixels, view, mean)
    # Pillow has no picture of three floating-point channels.
    return np.stack([resized(pixels[:, :, channel], view, mean[channel]) for channel in range(3)], axis=2)


def as_channels(pixels: np.ndarray) -> Tensor:
    """Of ``resized_pixels``: float32, 3 x H x W; uint8 to 0-1."""
    if pixels.dtype == np.uint8:
        pixels = pixels / np.float32(255)
    image = torch.from_numpy(pixels)
    return image.expand(3, -1, -1) if image.ndim == 2 else image.permute(2, 0, 1)


def check_fits(array: np.ndarray, modality: Modality, where: str) -> None:
    """Raise the ValueError that ``prepare`` would, without resizing."""
    if modality.kind == "depth":
        read_depth(array, modality, where)
    else:
        _pixels(array, modality, where)


def _pixels(array: np.ndarray, modality: Modality, where: str) -> np.ndarray:
    """H x W, or H x W x 3 for colours: uint8, or float32 in 0-1."""
    if array.ndim == 3 and array.shape[2] not in (3, 4):
        raise ValueError(
            f"{where}: {array.shape[2]} channels do not make a picture of kind {modality.kind}; wanted 1 or 3"
        )
    array = unit_range(array, modality, where)
    if array.ndim == 2:
        return array
    if modality.kind == "rgb":
        return array[:, :, :3]
    gray_HW = array[:, :, :3].astype(np.float32) @ np.array(LUMINANCE, dtype=np.float32)
    return np.rint(gray_HW).astype(np.uint8) if array.dtype == np.uint8 else gray_HW
