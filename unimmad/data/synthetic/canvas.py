"""Drawing on a square canvas with numpy: coordinates, soft shapes, smooth noise.

H x W is always ``SIZE`` x ``SIZE``; lengths are in pixels, y grows downwards, the centre is (0, 0). A *distance*
is a signed one (negative inside a shape); a *cover* says how much of each pixel a shape covers, 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

SIZE = 128

Image: TypeAlias = NDArray[np.float64]
Region: TypeAlias = NDArray[np.bool_]
Colour: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class Pose:
    """The canvas's pixel centres as the drawn object sees them."""

    x_HW: Image
    y_HW: Image

    def turned(self, degrees: float) -> Pose:
        """The same points in coordinates turned by ``degrees``."""
        cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        return Pose(cosine * self.x_HW + sine * self.y_HW, cosine * self.y_HW - sine * self.x_HW)

    def moved(self, x: float, y: float) -> Pose:
        """The same points in coordinates whose origin lies at (x, y)."""
        return Pose(self.x_HW - x, self.y_HW - y)


@cache
def upright() -> Pose:
    """The canvas itself: pixel centres, origin in the middle."""
    line = np.arange(SIZE) - (SIZE - 1) / 2
    y_HW, x_HW = np.meshgrid(line, line, indexing="ij")
    return Pose(x_HW, y_HW)


def casual_pose(rng: Generator, shift: float = 1.5, degrees: float = 2.0, zoom: float = 0.015) -> Pose:
    """A pose as a careful operator leaves it: shifted, turned and scaled by up to the given amounts."""
    x, y = rng.uniform(-shift, shift, 2)
    pose = upright().moved(x, y).turned(rng.uniform(-degrees, degrees))
    scale = 1 + rng.uniform(-zoom, zoom)
    return Pose(pose.x_HW * scale, pose.y_HW * scale)


def cover(distance_HW: Image, softness: float = 1.2) -> Image:
    """Cover of the shape with this signed distance; its edge fades over ``softness`` pixels."""
    return np.clip(0.5 - distance_HW / softness, 0, 1)


def disc(pose: Pose, radius: float) -> Image:
    """Signed distance to a disc at the pose's origin."""
    return np.hypot(pose.x_HW, pose.y_HW) - radius


def ellipse(pose: Pose, radius_x: float, radius_y: float) -> Image:
    """Roughly the signed distance to an ellipse at the pose's origin."""
    return (np.hypot(pose.x_HW / radius_x, pose.y_HW / radius_y) - 1) * min(radius_x, radius_y)


def box(pose: Pose, half_width: float, half_height: float, rounding: float = 0.0) -> Image:
    """Signed distance to an upright rectangle at the pose's origin."""
    x_HW = np.abs(pose.x_HW) - half_width + rounding
    y_HW = np.abs(pose.y_HW) - half_height + rounding
    outside_HW = np.hypot(np.maximum(x_HW, 0), np.maximum(y_HW, 0))
    return outside_HW + np.minimum(np.maximum(x_HW, y_HW), 0) - rounding


def blob(rng: Generator, x: float, y: float, radius: float, stretch: float = 1.0) -> Image:
    """Roughly the signed distance to an irregular, rounded spot about (x, y), ``stretch`` times as long as wide."""
    pose = upright().moved(x, y).turned(rng.uniform(0, 360))
    x_HW, y_HW = pose.x_HW / np.sqrt(stretch), pose.y_HW * np.sqrt(stretch)
    angle_HW = np.arctan2(y_HW, x_HW)
    wave_HW = np.zeros_like(angle_HW)
    for order in (2, 3, 4, 5):
        wave_HW += rng.normal(0, 0.16 / order) * np.cos(order * angle_HW + rng.uniform(0, 2 * np.pi))
    return np.hypot(x_HW, y_HW) - radius * (1 + wave_HW)


def smooth_noise(rng: Generator, grain: float) -> Image:
    """Noise of mean 0 and standard deviation 1 whose spots are about ``grain`` pixels wide."""
    noise_HW = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), grain / 2, mode="wrap", truncate=3)
    return (noise_HW - noise_HW.mean()) / noise_HW.std()


def flat(colour: Colour) -> Image:
    """An H x W x 3 image of one colour."""
    return np.broadcast_to(np.array(colour), (SIZE, SIZE, 3)).copy()


def over(below: Image, above: Image | Colour | float, cover_HW: Image) -> Image:
    """``above`` (an image, a colour or a value) laid over ``below`` with this cover."""
    weight = cover_HW[..., None] if below.ndim == 3 else cover_HW
    return below + weight * (np.asarray(above) - below)


def shade(image_HWC: Image, gain_HW: Image) -> Image:
    """A colour image made brighter or darker, pixel by pixel."""
    return image_HWC * gain_HW[..., None]


def jitter(rng: Generator, colour: Colour, amount: float = 0.02) -> Colour:
    """A colour near ``colour``: brightness and hue vary independently."""
    red, green, blue = np.array(colour) * (1 + rng.normal(0, amount)) + rng.normal(0, amount / 2, 3)
    return float(red), float(green), float(blue)
