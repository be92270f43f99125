"""Colour-only classes: woven cloth, ceramic tiles, a hexagon nut."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from unimmad.data.synthetic.canvas import (
    SIZE,
    Colour,
    Image,
    Pose,
    Region,
    box,
    casual_pose,
    cover,
    disc,
    flat,
    jitter,
    over,
    shade,
    smooth_noise,
)
from unimmad.data.synthetic.scene import Scene

THREAD = 10.0
"""Pixels from thread to thread."""
TILE = 32.0
GLAZES: tuple[Colour, ...] = ((0.30, 0.52, 0.56), (0.36, 0.58, 0.60), (0.26, 0.46, 0.53))
GROUT: Colour = (0.78, 0.76, 0.71)
STEEL: Colour = (0.66, 0.68, 0.71)
BENCH: Colour = (0.25, 0.20, 0.17)


def draw_cloth(rng: Generator) -> Scene:
    """Plain weave of two colours, a few thick pixels a thread."""
    pose = casual_pose(rng, shift=THREAD / 2, degrees=2)
    across, along = pose.x_HW / THREAD, pose.y_HW / THREAD
    warp_HWC = _threads(rng, across, along, jitter(rng, (0.70, 0.60, 0.44)))
    weft_HWC = _threads(rng, along, across + 1, jitter(rng, (0.25, 0.29, 0.36)))
    warp_above_HW = (np.sin(np.pi * across) * np.sin(np.pi * along) > 0).astype(float)
    cloth_HWC = over(weft_HWC, warp_HWC, warp_above_HW)
    cloth_HWC = shade(cloth_HWC, 1 + 0.03 * smooth_noise(rng, 2) + 0.02 * smooth_noise(rng, 20))
    return Scene({"rgb": cloth_HWC}, _everywhere())


def _threads(rng: Generator, across_HW: Image, along_HW: Image, colour: Colour) -> Image:
    """Round threads side by side, each a little lighter or darker than its neighbours."""
    number_HW = np.floor(across_HW).astype(int)
    tint_N = 1 + rng.normal(0, 0.025, 64)
    round_HW = np.sqrt(np.clip(1 - (1.7 * (across_HW - number_HW - 0.5)) ** 2, 0.1, 1))
    arch_HW = 0.82 + 0.18 * np.abs(np.sin(np.pi * along_HW))
    return shade(flat(colour), round_HW * arch_HW * tint_N[number_HW % 64])


def draw_tiles(rng: Generator) -> Scene:
    """Four by four glazed tiles; each has one of three glazes by chance."""
    pose = casual_pose(rng, shift=2, degrees=1)
    x_HW, y_HW = pose.x_HW + 4 * TILE, pose.y_HW + 4 * TILE
    column_HW, row_HW = (x_HW // TILE).astype(int), (y_HW // TILE).astype(int)
    inside = Pose(x_HW % TILE - TILE / 2, y_HW % TILE - TILE / 2)
    distance_HW = box(inside, TILE / 2 - 1.6, TILE / 2 - 1.6, rounding=2.5)
    glazes = np.array([jitter(rng, glaze, 0.015) for glaze in GLAZES])
    glaze_HWC = glazes[rng.integers(0, 3, (8, 8))[row_HW % 8, column_HW % 8]]
    gloss_HW = 1 + 0.05 * smooth_noise(rng, 9) - 0.003 * (inside.x_HW + inside.y_HW)
    rim_HW = 1 - 0.18 * np.clip(1 + distance_HW / 3, 0, 1)
    grout_HWC = shade(flat(jitter(rng, GROUT)), 1 + 0.05 * smooth_noise(rng, 2))
    tiles_HWC = over(grout_HWC, shade(glaze_HWC, gloss_HW * rim_HW), cover(distance_HW))
    return Scene({"rgb": tiles_HWC}, _everywhere())


def draw_nut(rng: Generator) -> Scene:
    """A hexagon nut on a workbench, always the same side up."""
    pose = casual_pose(rng, shift=1.5, degrees=3)
    hexagon_HW = np.max([np.abs(pose.turned(angle).x_HW) for angle in (0, 60, 120)], axis=0) - 44
    ring_HW = np.hypot(pose.x_HW, pose.y_HW)
    bench_HWC = _bench(rng, pose)
    shadow_HW = cover(disc(pose.moved(3, 4), 48), softness=9)
    below_HWC = shade(bench_HWC, 1 - 0.4 * shadow_HW)
    angle_HW = np.arctan2(pose.y_HW, pose.x_HW)
    brushed_HW = 1 + 0.05 * np.sin(4 * angle_HW + 1) + 0.035 * smooth_noise(rng, 2) + 0.03 * smooth_noise(rng, 14)
    bevel_HW = 1 - 0.22 * np.clip((ring_HW - 38) / 6, 0, 1) * (1 + 0.6 * np.cos(angle_HW - 0.8))
    steel_HWC = shade(flat(jitter(rng, STEEL, 0.025)), brushed_HW * bevel_HW)
    nut_HWC = over(below_HWC, steel_HWC, cover(hexagon_HW))
    thread_HW = 0.6 + 0.35 * np.cos(2 * np.pi * (ring_HW - angle_HW / (2 * np.pi) * 4) / 4)
    nut_HWC = over(nut_HWC, shade(flat((0.42, 0.42, 0.44)), thread_HW), cover(ring_HW - 25))
    nut_HWC = over(nut_HWC, shade(bench_HWC, np.full((SIZE, SIZE), 0.4)), cover(ring_HW - 17))
    return Scene({"rgb": nut_HWC}, (hexagon_HW < 0.6) & (ring_HW > 26), {"rgb": below_HWC})


def _bench(rng: Generator, pose: Pose) -> Image:
    grain_HW = np.sin(0.22 * pose.y_HW + 0.8 * smooth_noise(rng, 30))
    return shade(flat(jitter(rng, BENCH)), 1 + 0.06 * grain_HW + 0.03 * smooth_noise(rng, 2))


def _everywhere() -> Region:
    return np.ones((SIZE, SIZE), dtype=bool)
