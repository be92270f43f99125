"""Classes with four MRI-like sequences: two slices of a head, painted from one map of tissues.

Each sequence shows the same tissues in other greys, as T1, T1 with contrast agent, T2 and FLAIR do.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.random import Generator
from scipy import ndimage

from unimmad.data.synthetic.canvas import (
    SIZE,
    Image,
    Pose,
    casual_pose,
    cover,
    disc,
    ellipse,
    over,
    smooth_noise,
)
from unimmad.data.synthetic.scene import Scene

SEQUENCES = ("t1", "t1ce", "t2", "flair")
GREYS: dict[str, tuple[float, float, float, float]] = {
    "scalp": (0.62, 0.66, 0.50, 0.40),
    "bone": (0.07, 0.07, 0.06, 0.06),
    "fluid": (0.09, 0.09, 0.84, 0.07),
    "cortex": (0.20, 0.22, 0.34, 0.29),
    "white": (0.31, 0.32, 0.21, 0.21),
    "vessel": (0.20, 0.80, 0.12, 0.15),
}
"""Brightness of each tissue in each of the sequences."""


def draw_ventricle_slice(rng: Generator) -> Scene:
    """A slice through the ventricles."""
    return _draw(rng, ventricles=True)


def draw_upper_slice(rng: Generator) -> Scene:
    """A slice above the ventricles, parted by the great fissure."""
    return _draw(rng, ventricles=False)


def _draw(rng: Generator, ventricles: bool) -> Scene:
    pose = _anatomy(rng, casual_pose(rng, shift=1.2, degrees=2))
    brain_HW = ellipse(pose, 41, 50) if ventricles else ellipse(pose, 38, 47)
    layers = _layers(pose, brain_HW, ventricles)
    mottle_HW = 1 + 0.03 * smooth_noise(rng, 5)
    images = {}
    for number, name in enumerate(SEQUENCES):
        grey_HW = np.zeros((SIZE, SIZE))
        for tissue, cover_HW in layers:
            grey_HW = over(grey_HW, GREYS[tissue][number] * (1 + rng.normal(0, 0.015)), cover_HW)
        images[name] = grey_HW * mottle_HW * (1 + 0.02 * smooth_noise(rng, 3))
    fluid_HW = np.max([cover_HW for tissue, cover_HW in layers[3:] if tissue == "fluid"], axis=0)
    return Scene(images, (brain_HW < -6) & (fluid_HW < 0.3))


def _anatomy(rng: Generator, pose: Pose) -> Pose:
    """The same head in another person: everything pushed about smoothly by a pixel or so."""
    return Pose(pose.x_HW + 1.0 * smooth_noise(rng, 34), pose.y_HW + 1.0 * smooth_noise(rng, 34))


def _layers(pose: Pose, brain_HW: Image, ventricles: bool) -> list[tuple[str, Image]]:
    """Tissues from the skin inwards, each with its cover; later ones lie over earlier ones."""
    folds_HW, furrows_HW = _atlas_folds(pose)
    near_surface_HW = cover(-brain_HW - 15, 8)
    layers = [
        ("scalp", cover(brain_HW - 9)),
        ("bone", cover(brain_HW - 6)),
        ("fluid", cover(brain_HW - 2)),
        ("cortex", cover(brain_HW)),
        ("white", cover(brain_HW + 7 + 2.2 * folds_HW, 2.5)),
        ("fluid", 0.8 * near_surface_HW * cover(brain_HW) * cover(np.abs(furrows_HW) * 9 - 1.1, 1.5)),
        ("fluid", 0.8 * cover(np.maximum(np.abs(pose.x_HW) - 0.9, brain_HW)) * _fissure(pose, ventricles)),
        ("vessel", cover(disc(pose.moved(0, 47 if ventricles else 44), 3.2))),
        ("vessel", cover(disc(pose.moved(0, -47 if ventricles else -44), 2.2))),
    ]
    if ventricles:
        for side in (-1, 1):
            layers += _inner_side(pose, side)
    return layers


def _fissure(pose: Pose, ventricles: bool) -> Image:
    """Where the two halves of the brain are parted: all the way, or only in front and behind."""
    if not ventricles:
        return np.ones((SIZE, SIZE))
    return cover(22 - np.abs(pose.y_HW), 6)


def _inner_side(pose: Pose, side: int) -> list[tuple[str, Image]]:
    """Deep grey matter and ventricle horns of one side (-1 left, 1 right)."""
    thalamus_HW = cover(ellipse(pose.moved(side * 10, 4), 7, 10), 3)
    nucleus_HW = cover(ellipse(pose.moved(side * 19, -4).turned(side * 14), 4.5, 11), 3)
    front_HW = ellipse(pose.moved(side * 6.5, -15).turned(side * 22), 3.6, 9.5)
    back_HW = ellipse(pose.moved(side * 11, 20).turned(-side * 30), 3.6, 10)
    return [
        ("cortex", 0.85 * thalamus_HW),
        ("cortex", 0.85 * nucleus_HW),
        ("fluid", cover(np.minimum(front_HW, back_HW), 2)),
    ]


@cache
def _atlas() -> tuple[Image, Image]:
    rng = np.random.default_rng(2)
    return smooth_noise(rng, 7), smooth_noise(rng, 10)


def _atlas_folds(pose: Pose) -> tuple[Image, Image]:
    """The folds of the cortex and its furrows, the same in every head and alike on both sides, in this pose."""
    centre = (SIZE - 1) / 2
    from_2HW = np.stack([pose.y_HW + centre, np.abs(pose.x_HW + 0.8) + centre])
    folds_HW, furrows_HW = (ndimage.map_coordinates(map_HW, from_2HW, order=1, mode="wrap") for map_HW in _atlas())
    return folds_HW, furrows_HW
