"""Classes with four MRI-like sequences: two slices of a head, painted from one map of tissues.

Each sequence shows the same tissues in other greys, as T1, T1 with contrast agent, T2 and FLAIR do.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from unimmad.data.synthetic.canvas import (
    SIZE,
    Image,
    Pose,
    casual_pose,
    cover,
    ellipse,
    over,
    smooth_noise,
)
from unimmad.data.synthetic.scene import Scene

SEQUENCES = ("t1", "t1ce", "t2", "flair")
GREYS: dict[str, tuple[float, float, float, float]] = {
    "scalp": (0.66, 0.70, 0.52, 0.42),
    "bone": (0.10, 0.10, 0.08, 0.08),
    "fluid": (0.14, 0.14, 0.86, 0.12),
    "cortex": (0.42, 0.45, 0.58, 0.52),
    "white": (0.60, 0.61, 0.38, 0.40),
    "vessel": (0.40, 0.88, 0.22, 0.30),
}
"""Brightness of each tissue in each of the sequences."""


def draw_ventricle_slice(rng: Generator) -> Scene:
    """A slice through the ventricles."""
    return _draw(rng, ventricles=True)


def draw_upper_slice(rng: Generator) -> Scene:
    """A slice above the ventricles, parted by the great fissure."""
    return _draw(rng, ventricles=False)


def _draw(rng: Generator, ventricles: bool) -> Scene:
    pose = _anatomy(rng, casual_pose(rng, shift=1.5, degrees=2, zoom=0.02))
    half_width, half_height = (42, 51) if ventricles else (39, 48)
    brain_HW = ellipse(pose, half_width, half_height)
    covers = _tissues(pose, brain_HW, ventricles)
    mottle_HW = smooth_noise(rng, 5)
    images = {}
    for number, name in enumerate(SEQUENCES):
        grey = np.zeros((SIZE, SIZE))
        for tissue, cover_HW in covers.items():
            grey = over(grey, GREYS[tissue][number] * (1 + rng.normal(0, 0.02)), cover_HW)
        images[name] = grey * (1 + 0.04 * mottle_HW + 0.02 * smooth_noise(rng, 3))
    tissue_HW = (brain_HW < -7) & (covers["fluid"] * (covers["white"] + covers["cortex"] < 1.5) < 0.5)
    return Scene(images, tissue_HW, bare={})


def _tissues(pose: Pose, brain_HW: Image, ventricles: bool) -> dict[str, Image]:
    """Cover of each tissue, in the order in which they are laid over one another."""
    folds_HW = _folds(ventricles, pose)
    covers = {"scalp": cover(brain_HW - 10), "bone": cover(brain_HW - 6)}
    return covers
