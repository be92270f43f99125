"""What can go wrong with a scene. Each function here makes an ``Apply``: how one kind of defect changes a scene.

Strengths are 0 (hard to see) to 1 (clear). A defect's edge is never faded out to nothing, so that its region is
where the images differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from unimmad.data.synthetic.canvas import Colour, Image, Region, blob, over, shade, smooth_noise, upright
from unimmad.data.synthetic.scene import Scene

SPOT_SCALE = 1.3
"""Enlarges every spot: how large defects are beside their scenes, and with it how hard the whole set is."""


@dataclass(frozen=True)
class Damage:
    """Changed images of some modalities; they count inside the region only."""

    images: dict[str, Image]
    region_HW: Region


Apply: TypeAlias = Callable[[Scene, Generator, float], Damage]


@dataclass(frozen=True)
class DefectKind:
    """One kind of defect of one class."""

    name: str
    modalities: tuple[str, ...]
    """Where it is visible; the images of every other modality stay as they are, to the bit."""
    apply: Apply


@dataclass(frozen=True)
class Spot:
    """An irregular spot on a scene's foreground."""

    region_HW: Region
    depth_HW: Image
    """0.3 at the spot's edge, 1 in its middle: a profile to multiply changes with."""
    x: float
    y: float
    radius: float


def pick_spot(scene: Scene, rng: Generator, radii: tuple[float, float], stretch: float = 1.0) -> Spot:
    """Choose a spot whose middle lies on the foreground, well inside where there is room."""
    radius = SPOT_SCALE * rng.uniform(*radii)
    room_HW = _room(scene.foreground_HW)
    rows, columns = np.nonzero(room_HW >= min(0.7 * radius, 0.9 * room_HW.max()))
    chosen = rng.integers(len(rows))
    x = upright().x_HW[rows[chosen], columns[chosen]]
    y = upright().y_HW[rows[chosen], columns[chosen]]
    distance_HW = blob(rng, x, y, radius, stretch)
    depth_HW = 0.3 + 0.7 * np.clip(-distance_HW / (0.6 * radius / np.sqrt(stretch)), 0, 1)
    pieces_HW, _ = ndimage.label((distance_HW < 0) & scene.foreground_HW)
    region_HW = pieces_HW == pieces_HW[rows[chosen], columns[chosen]]
    return Spot(region_HW, depth_HW, x, y, radius)


def between(low: float, high: float, strength: float) -> float:
    """The amount that a strength stands for."""
    return low + (high - low) * strength


def stain(colour: Colour, radii: tuple[float, float] = (8, 16), stretch: float = 1.3) -> Apply:
    """Something of another colour soaked in: the surface still shows through. Colour images only."""

    def apply(scene: Scene, rng: Generator, strength: float) -> Damage:
        spot = pick_spot(scene, rng, radii, stretch)
        patchy_HW = np.clip(1 + 0.2 * smooth_noise(rng, 6), 0.5, 1.4)
        cover_HW = between(0.3, 0.85, strength) * spot.depth_HW**0.5 * patchy_HW
        return Damage({"rgb": over(scene.images["rgb"], colour, np.clip(cover_HW, 0, 1))}, spot.region_HW)

    return apply


def dirt(colour: Colour, warming: tuple[float, float], radii: tuple[float, float] = (8, 15)) -> Apply:
    """A dusty layer that also keeps the surface under it warm. Colour and infrared."""
    soil = stain(colour, radii)

    def apply(scene: Scene, rng: Generator, strength: float) -> Damage:
        soiled = soil(scene, rng, strength)
        warmer_HW = scene.images["infrared"] + between(*warming, strength)
        return Damage(soiled.images | {"infrared": warmer_HW}, soiled.region_HW)

    return apply


def crust(colour: Colour, grain: float, radii: tuple[float, float] = (8, 16)) -> Apply:
    """A rough layer that hides the surface: rust, mould, crumbs. Colour images only."""

    def apply(scene: Scene, rng: Generator, strength: float) -> Damage:
        spot = pick_spot(scene, rng, radii)
        lumps_HW = 1 + 0.28 * np.tanh(smooth_noise(rng, grain))
        layer_HWC = shade(np.broadcast_to(np.array(colour), scene.images["rgb"].shape), lumps_HW)
        cover_HW = between(0.4, 0.95, strength) * spot.depth_HW**0.4
        return Damage({"rgb": over(scene.images["rgb"], layer_HWC, cover_HW)}, spot.region_HW)

    return apply


def scratches(gain: float, radii: tuple[float, float] = (9, 15)) -> Apply:
    """A bundle of parallel scratches, brighter (gain > 1) or darker than the surface. Colour images only."""

    def apply(scene: Scene, rng: Generator, strength: float) -> Damage:
        spot = pick_spot(scene, rng, radii, stretch=2.2)
        across_HW = upright().moved(spot.x, spot.y).turned(rng.uniform(0, 180)).x_HW
        stripes_HW = 0.55 + 0.45 * np.cos(2 * np.pi * across_HW / rng.uniform(4, 5.5))
        gain_HW = 1 + (gain - 1) * between(0.35, 1, strength) * stripes_HW
        return Damage({"rgb": shade(scene.images["rgb"], gain_HW)}, spot.region_HW)

    return apply


def hole(dark: Colour, metres: tuple[float, float] = (0.004, 0.012), radii: tuple[float, float] = (6, 12)) -> Apply:
    """Material torn out: dark in colour; deeper, but not below the table, where there is depth."""

    def apply(scene: Scene, rng: Generator, strength: float) -> Damage:
        spot = pick_spot(scene, rng, radii)
        cover_HW = between(0.45, 0.9, strength) * spot.depth_HW**0.5
        images = {"rgb": over(scene.images["rgb"], dark, cover_HW)}
        if "depth" in scene.images:
            deeper_HW = scene.images["depth"] + between(*metres, strength) * spot.depth_HW
            images["depth"] = np.minimum(deeper_HW, scene.bare["depth"])
        return Damage(images, spot.region_HW)

    return apply


def dent(metres: tuple[float, float], radii: tuple[float, float] = (9, 17)) -> Apply:
    """The surface pressed in (metres > 0, away from the camera) or bulging (< 0). Depth only."""

    def apply(scene: Scene, rng: Generator, strength: float) -> Damage:
        spot = pick_spot(scene, rng, radii, stretch=1.2)
        change_HW = between(*metres, strength) * spot.depth_HW
        return Damage({"depth": scene.images["depth"] + change_HW}, spot.region_HW)

    return apply


def warmth(amount: tuple[float, float], radii: tuple[float, float] = (8, 15)) -> Apply:
    """A spot warmer (amounts > 0) or colder (< 0) than it should be. Infrared only."""

    def apply(scene: Scene, rng: Generator, strength: float) -> Damage:
        spot = pick_spot(scene, rng, radii)
        change_HW = between(*amount, strength) * spot.depth_HW
        return Damage({"infrared": scene.images["infrared"] + change_HW}, spot.region_HW)

    return apply


def part_off(change: dict[str, tuple[float, float]]) -> Apply:
    """One whole part brighter, warmer, deeper ... than it should be, by these amounts, in grey modalities."""

    def apply(scene: Scene, rng: Generator, strength: float) -> Damage:
        part_HW = scene.parts_PHW[rng.integers(len(scene.parts_PHW))]
        rows, columns = np.nonzero(part_HW)
        tilt_x, tilt_y = rng.uniform(-0.4, 0.4, 2)
        grid = upright()
        x_HW = (grid.x_HW - grid.x_HW[0, columns].mean()) / (np.ptp(columns) + 1)
        y_HW = (grid.y_HW - grid.y_HW[rows, 0].mean()) / (np.ptp(rows) + 1)
        profile_HW = 1 + tilt_x * x_HW + tilt_y * y_HW
        images = {
            name: scene.images[name] + between(*amounts, strength) * profile_HW for name, amounts in change.items()
        }
        return Damage(images, part_HW)

    return apply


def missing_part(scene: Scene, rng: Generator, strength: float) -> Damage:
    """One part is not there: what lies below shows. (All there is to its strength is which part it is.)"""
    by_size = sorted(scene.parts_PHW, key=lambda part_HW: int(part_HW.sum()))
    wanted = strength * (len(by_size) - 1) + rng.normal(0, 0.8)
    return Damage(scene.bare, by_size[int(np.clip(np.rint(wanted), 0, len(by_size) - 1))])


def bite(radii: tuple[float, float] = (8, 15)) -> Apply:
    """A piece broken off the rim: what lies below shows."""

    def apply(scene: Scene, rng: Generator, strength: float) -> Damage:
        room_HW = _room(scene.foreground_HW)
        rows, columns = np.nonzero((room_HW > 0) & (room_HW < 2.5))
        chosen = rng.integers(len(rows))
        x, y = upright().x_HW[rows[chosen], columns[chosen]], upright().y_HW[rows[chosen], columns[chosen]]
        radius = between(*radii, strength) * rng.uniform(0.9, 1.1)
        return Damage(scene.bare, (blob(rng, x, y, radius) < 0) & scene.foreground_HW)

    return apply


def swirl(names: tuple[str, ...], degrees: tuple[float, float], radii: tuple[float, float] = (13, 20)) -> Apply:
    """The pattern twisted about a point, most in the middle: bent threads, a strand out of lay."""

    def apply(scene: Scene, rng: Generator, strength: float) -> Damage:
        spot = pick_spot(scene, rng, radii)
        pose = upright().moved(spot.x, spot.y)
        inside_HW = np.clip(1 - np.hypot(pose.x_HW, pose.y_HW) / spot.radius, 0, 1)
        angle_HW = rng.choice((-1, 1)) * np.deg2rad(between(*degrees, strength)) * np.sqrt(inside_HW)
        cosine_HW, sine_HW = np.cos(angle_HW), np.sin(angle_HW)
        centre = (scene.foreground_HW.shape[0] - 1) / 2
        from_2HW = np.stack(
            [
                pose.y_HW * cosine_HW - pose.x_HW * sine_HW + spot.y + centre,
                pose.x_HW * cosine_HW + pose.y_HW * sine_HW + spot.x + centre,
            ]
        )
        images = {name: _resample(scene.images[name], from_2HW) for name in names}
        return Damage(images, (inside_HW > 0.04) & scene.foreground_HW)

    return apply


def lesion(change: dict[str, tuple[float, float]], radii: tuple[float, float] = (5, 11)) -> Apply:
    """Tissue brighter (amounts > 0) or darker in some sequences, mottled as the tissue is."""

    def apply(scene: Scene, rng: Generator, strength: float) -> Damage:
        spot = pick_spot(scene, rng, radii, stretch=1.25)
        patchy_HW = spot.depth_HW**0.7 * np.clip(1 + 0.15 * smooth_noise(rng, 5), 0.6, 1.4)
        images = {
            name: scene.images[name] + between(*amounts, strength) * patchy_HW for name, amounts in change.items()
        }
        return Damage(images, spot.region_HW)

    return apply


def _room(foreground_HW: Region) -> Image:
    """Distance of every pixel to the nearest one that is not foreground, or to the canvas's border."""
    return ndimage.distance_transform_edt(np.pad(foreground_HW, 1))[1:-1, 1:-1]


def _resample(image: Image, from_2HW: Image) -> Image:
    if image.ndim == 2:
        return ndimage.map_coordinates(image, from_2HW, order=1, mode="nearest")
    channels = [ndimage.map_coordinates(image[..., c], from_2HW, order=1, mode="nearest") for c in range(3)]
    return np.stack(channels, axis=-1)
