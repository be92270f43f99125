"""Classes with colour and depth: a cookie, a twisted rope."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from unimmad.data.synthetic.canvas import (
    Colour,
    Image,
    casual_pose,
    cover,
    disc,
    flat,
    jitter,
    over,
    shade,
    smooth_noise,
)
from unimmad.data.synthetic.scene import Scene, table_depth

DOUGH: Colour = (0.74, 0.55, 0.33)
CHOCOLATE: Colour = (0.30, 0.19, 0.13)
PLATE: Colour = (0.70, 0.75, 0.78)
HEMP: Colour = (0.76, 0.66, 0.46)
CANVAS: Colour = (0.18, 0.23, 0.29)
CHIPS = ((-20, -19), (3, -27), (24, -15), (-30, 3), (-6, -3), (17, 7), (32, 10), (-17, 22), (5, 29), (24, 27))
"""Where the baker puts the chips, in pixels from the middle."""


def draw_cookie(rng: Generator) -> Scene:
    """A cookie with ten chocolate chips, laid on a plate."""
    pose = casual_pose(rng, shift=2, degrees=3, zoom=0.02)
    ring_HW = np.hypot(pose.x_HW, pose.y_HW)
    rim_HW = disc(pose, 48) + 0.8 * smooth_noise(rng, 10)
    cookie_HW = cover(rim_HW)
    table_HW, plate_HWC = table_depth(rng), shade(flat(jitter(rng, PLATE)), 1 + 0.02 * smooth_noise(rng, 3))
    below_HWC = shade(plate_HWC, 1 - 0.35 * cover(disc(pose.moved(2, 3), 50), softness=8))
    crust_HW = 1 + 0.06 * smooth_noise(rng, 3) + 0.05 * smooth_noise(rng, 11)
    browned_HW = 1.06 - 0.26 * np.clip(ring_HW / 48, 0, 1) ** 3
    cookie_HWC = over(below_HWC, shade(flat(jitter(rng, DOUGH, 0.03)), crust_HW * browned_HW), cookie_HW)
    height_HW = 0.016 * np.sqrt(np.clip(1 - (ring_HW / 50) ** 2, 0, 1)) + 0.0003 * smooth_noise(rng, 6)
    chips_PHW = np.stack([_chip(rng, pose.x_HW, pose.y_HW, x, y) for x, y in CHIPS])
    glint_HW = 1 + 0.15 * smooth_noise(rng, 4)
    cookie_HWC = over(cookie_HWC, shade(flat(CHOCOLATE), glint_HW), cover(chips_PHW.min(axis=0)))
    lumps_HW = 0.003 * np.clip(-chips_PHW.min(axis=0) / 4, 0, 1)
    images = {"rgb": cookie_HWC, "depth": table_HW - cookie_HW * (height_HW + lumps_HW)}
    return Scene(images, rim_HW < 0.6, {"rgb": below_HWC, "depth": table_HW})


def _chip(rng: Generator, x_HW: Image, y_HW: Image, x: float, y: float) -> Image:
    """Signed distance to one chip, near its place."""
    dx, dy = rng.normal(0, 1.2, 2)
    return np.hypot(x_HW - x - dx, y_HW - y - dy) - rng.uniform(4.2, 5.8)


def draw_rope(rng: Generator) -> Scene:
    """A rope of three strands across the picture, on canvas."""
    pose = casual_pose(rng, shift=1.5, degrees=2)
    half = 32 * (1 + rng.normal(0, 0.015))
    across_HW = pose.y_HW / half
    rope_HW = cover(np.abs(pose.y_HW) - half)
    turn_HW = pose.x_HW / 30 + 0.55 * np.arcsin(np.clip(across_HW, -1, 1)) + rng.uniform(0, 1)
    strand_HW = np.abs(np.sin(np.pi * turn_HW))
    fibres_HW = np.sin(2 * np.pi * (5 * turn_HW - 0.16 * pose.y_HW) + 0.5 * smooth_noise(rng, 12))
    side_HW = np.sqrt(np.clip(1 - across_HW**2, 0.04, 1))
    gain_HW = (0.5 + 0.5 * strand_HW**0.6) * (0.45 + 0.55 * side_HW) * (1 + 0.06 * fibres_HW)
    rope_HWC = shade(flat(jitter(rng, HEMP, 0.03)), gain_HW * (1 + 0.04 * smooth_noise(rng, 2)))
    weave_HW = np.sin(np.pi * pose.x_HW / 4) * np.sin(np.pi * pose.y_HW / 4)
    canvas_HWC = shade(flat(jitter(rng, CANVAS)), 1 + 0.08 * weave_HW + 0.03 * smooth_noise(rng, 3))
    shadow_HW = cover(np.abs(pose.y_HW - 4) - half, softness=10)
    below_HWC = shade(canvas_HWC, 1 - 0.4 * shadow_HW)
    table_HW = table_depth(rng)
    height_HW = 0.026 * side_HW + 0.004 * strand_HW * side_HW + 0.0003 * fibres_HW
    images = {"rgb": over(below_HWC, rope_HWC, rope_HW), "depth": table_HW - rope_HW * height_HW}
    return Scene(images, np.abs(pose.y_HW) < half - 1, {"rgb": below_HWC, "depth": table_HW})
