"""A drawn scene, how a camera sees it, and how its images become files.

Brightness is 0 to 1; depth is the distance from the camera in metres. Colour images are H x W x 3, all others H x W.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image as Pillow

from unimmad.data.synthetic.canvas import SIZE, Image, Region, shade, smooth_noise, upright

DEPTH_RANGE = 0.5
"""Metres that the largest 16-bit value stands for; the value 0 means "not measured"."""


TABLE = 0.25
"""Metres from the camera to the table."""


@dataclass(frozen=True)
class Scene:
    """What lies before the cameras: one image a modality, and what a defect has to know of it."""

    images: dict[str, Image]
    """By modality name, without light and sensor noise."""
    foreground_HW: Region
    """Where defects may lie."""
    bare: dict[str, Image] = field(default_factory=dict)
    """The same images without what can be missing: the empty board, the table under the object."""
    parts_PHW: tuple[Region, ...] = ()
    """Where each part lies that can be missing or out of place."""


def table_depth(rng: Generator) -> Image:
    """Depth of the empty table, never quite level."""
    slope_x, slope_y = rng.normal(0, 0.0003, 2)
    grid = upright()
    return TABLE + (slope_x * grid.x_HW + slope_y * grid.y_HW) / (SIZE / 2)


def photograph(images: dict[str, Image], rng: Generator) -> dict[str, NDArray[np.uint8] | NDArray[np.uint16]]:
    """What the sensors store of a scene: light, colour balance, noise, holes in the depth, rounding.

    Every pixel depends on the same pixel of ``images`` only, and ``rng`` is used in the same way whatever the scene.
    """
    return {name: _sensor(name, images[name], rng) for name in images}


def encode_png(image: NDArray[np.uint8] | NDArray[np.uint16]) -> bytes:
    """The image as a PNG file: 8-bit colour or grey, or 16-bit grey."""
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def _sensor(name: str, image: Image, rng: Generator) -> NDArray[np.uint8] | NDArray[np.uint16]:
    noise = rng.uniform(0.6, 1.4) * rng.standard_normal(image.shape)
    if name == "depth":
        return _depth_sensor(image + 0.0001 * noise, rng)
    if name == "rgb":
        lit = shade(image, _light(rng, 0.05)) * (1 + rng.normal(0, 0.008, 3))
        return _to_bytes(lit + 0.012 * noise)
    if name == "infrared":
        drift_HW = rng.normal(0, 0.012) + 0.008 * smooth_noise(rng, 40)
        return _to_bytes(image + drift_HW + 0.01 * noise)
    return _to_bytes(image * _light(rng, 0.04) + 0.013 * noise)


def _light(rng: Generator, amount: float) -> Image:
    """A gain near 1 that differs from image to image and slopes gently across it."""
    slope_x, slope_y = rng.normal(0, amount / 2, 2)
    grid = upright()
    return 1 + rng.normal(0, amount / 2) + (slope_x * grid.x_HW + slope_y * grid.y_HW) / (SIZE / 2)


def _depth_sensor(depth_HW: Image, rng: Generator) -> NDArray[np.uint16]:
    """Integer depth; the ragged left border that only one of a stereo camera's eyes sees stays unmeasured."""
    measured_HW = depth_HW + rng.normal(0, 0.0005)
    stored_HW = np.clip(np.rint(measured_HW / DEPTH_RANGE * 65535), 1, 65535).astype(np.uint16)
    blind_H = rng.integers(1, 4, SIZE)
    stored_HW[np.arange(SIZE) < blind_H[:, None]] = 0
    return stored_HW


def _to_bytes(image: Image) -> NDArray[np.uint8]:
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)
