"""Classes with colour, infrared and depth: a circuit module, a solar panel, a sealed capsule."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from unimmad.data.synthetic.canvas import (
    SIZE,
    Colour,
    Image,
    Pose,
    box,
    casual_pose,
    cover,
    disc,
    ellipse,
    flat,
    jitter,
    over,
    shade,
    smooth_noise,
)
from unimmad.data.synthetic.scene import Scene, table_depth

SOLDER_MASK: Colour = (0.13, 0.38, 0.27)
COPPER: Colour = (0.24, 0.50, 0.36)
PLASTIC: Colour = (0.17, 0.17, 0.19)
CERAMIC: Colour = (0.70, 0.60, 0.46)
TIN: Colour = (0.68, 0.69, 0.70)
CHIPS = ((-22, -20, 18, 18, 0.42), (26, -30, 15, 9, 0.14), (28, -4, 11, 9, 0.24), (-34, 32, 10, 8, 0.08))
"""Of each chip: x, y, half width, half height in pixels, and how warm it runs."""
RESISTORS = ((-6, 14), (-6, 27), (-6, 40), (10, 14), (10, 27), (10, 40))
CANS = ((34, 22), (34, 43))
"""Where the round capacitors stand."""


def draw_module(rng: Generator) -> Scene:
    """A small circuit module: chips, resistors, capacitors, tracks."""
    pose = casual_pose(rng, shift=1.2, degrees=1, zoom=0.01)
    board_HWC, level_HW = _board(rng, pose), table_depth(rng)
    distances = [box(pose.moved(x, y), width, height, 1.5) for x, y, width, height, _ in CHIPS]
    distances += [box(pose.moved(x, y), 5.5, 3.5, 0.8) for x, y in RESISTORS]
    distances += [disc(pose.moved(x, y), 8.5) for x, y in CANS]
    colours = [PLASTIC] * len(CHIPS) + [CERAMIC] * len(RESISTORS) + [TIN] * len(CANS)
    heights = [0.0045] * len(CHIPS) + [0.0025] * len(RESISTORS) + [0.012] * len(CANS)
    rgb_HWC, depth_HW = board_HWC, level_HW
    grain_HW = 1 + 0.03 * smooth_noise(rng, 3)
    for distance_HW, colour, height in zip(distances, colours, heights, strict=True):
        rgb_HWC = shade(rgb_HWC, 1 - 0.35 * cover(distance_HW - 2, softness=4))
        face_HW = (0.9 + 0.1 * np.clip(-distance_HW / 3, 0, 1)) * grain_HW
        rgb_HWC = over(rgb_HWC, shade(flat(jitter(rng, colour)), face_HW), cover(distance_HW))
        depth_HW = over(depth_HW, level_HW - height * rng.uniform(0.97, 1.03), cover(distance_HW))
    rgb_HWC = _print_on(rgb_HWC, pose)
    images = {"rgb": rgb_HWC, "infrared": _warm_board(rng, pose), "depth": depth_HW}
    bare = {"rgb": board_HWC, "infrared": np.full((SIZE, SIZE), 0.16), "depth": level_HW}
    parts = tuple(distance_HW < 1.5 for distance_HW in distances)
    return Scene(images, box(pose, 56, 56) < 0, bare, parts)


def _board(rng: Generator, pose: Pose) -> Image:
    """The empty board: solder mask, tracks, pads."""
    board_HWC = shade(flat(jitter(rng, SOLDER_MASK)), 1 + 0.03 * smooth_noise(rng, 3))
    lines_HW = np.minimum(np.abs((pose.x_HW + 64) % 13 - 6.5), np.abs((pose.y_HW + 0.25 * pose.x_HW) % 17 - 8.5))
    board_HWC = over(board_HWC, jitter(rng, COPPER), 0.75 * cover(lines_HW - 1.1))
    for x, y in RESISTORS:
        pads_HW = np.minimum(box(pose.moved(x - 5, y), 2.5, 3.2), box(pose.moved(x + 5, y), 2.5, 3.2))
        board_HWC = over(board_HWC, (0.74, 0.72, 0.66), cover(pads_HW))
    for x, y in ((-57, -57), (57, -57), (-57, 57), (57, 57)):
        board_HWC = over(board_HWC, (0.72, 0.64, 0.40), cover(disc(pose.moved(x, y), 5)))
        board_HWC = over(board_HWC, (0.15, 0.15, 0.15), cover(disc(pose.moved(x, y), 2.5)))
    return board_HWC


def _print_on(rgb_HWC: Image, pose: Pose) -> Image:
    """White marks on the chips and the dark sector on the capacitors."""
    for x, y, width, _, _ in CHIPS:
        marks = pose.moved(x, y)
        text_HW = np.maximum(box(marks, 0.6 * width, 3), np.abs((marks.x_HW % 4) - 2) - 1.2)
        rgb_HWC = over(rgb_HWC, (0.75, 0.75, 0.75), 0.6 * cover(text_HW))
    for x, y in CANS:
        sector_HW = np.maximum(disc(pose.moved(x, y), 7.5), 3 - pose.moved(x, y).x_HW)
        rgb_HWC = over(rgb_HWC, (0.2, 0.2, 0.26), cover(sector_HW))
    return rgb_HWC


def _warm_board(rng: Generator, pose: Pose) -> Image:
    """Heat of the chips, spread over the board."""
    heat_HW = np.full((SIZE, SIZE), 0.16)
    load = 1 + rng.normal(0, 0.04)
    for x, y, width, height, warmth in CHIPS:
        distance_HW = box(pose.moved(x, y), width, height)
        heat_HW += load * warmth * (0.6 * cover(distance_HW, 2) + 0.4 * np.exp(-np.clip(distance_HW, 0, None) / 9))
    for x, y in RESISTORS:
        heat_HW += 0.08 * load * cover(box(pose.moved(x, y), 5, 3), 4)
    return heat_HW + 0.01 * smooth_noise(rng, 5)


def draw_panel(rng: Generator) -> Scene:
    """Part of a solar panel: four by three cells under glass."""
    pose = casual_pose(rng, shift=1.2, degrees=0.8, zoom=0.008)
    centres = [(x, y) for y in (-42, 0, 42) for x in (-48, -16, 16, 48)]
    cells = [box(pose.moved(x, y), 14.8, 19.6, 3) for x, y in centres]
    nearest_HW = np.min(cells, axis=0)
    frame_HWC = shade(flat(jitter(rng, (0.66, 0.68, 0.71))), 1 + 0.03 * smooth_noise(rng, 3))
    tints = np.ones((SIZE, SIZE))
    for distance_HW in cells:
        tints = over(tints, 1 + rng.normal(0, 0.05), cover(distance_HW))
    crystal_HW = 1 + 0.10 * np.tanh(smooth_noise(rng, 7)) + 0.04 * smooth_noise(rng, 2)
    rgb_HWC = over(frame_HWC, shade(flat(jitter(rng, (0.15, 0.22, 0.40))), crystal_HW * tints), cover(nearest_HW))
    bars_HW = np.abs((pose.x_HW + 64) % 16 - 8) - 0.9
    rgb_HWC = over(rgb_HWC, (0.62, 0.65, 0.70), 0.8 * cover(bars_HW))
    heat_HW = 0.60 + 0.12 * cover(nearest_HW, 3) * tints + 0.03 * pose.y_HW / 64 + 0.008 * smooth_noise(rng, 9)
    sunk_HW = 0.006 * cover(-nearest_HW - 1)
    depth_HW = table_depth(rng) + sunk_HW - 0.002 * cover(bars_HW)
    images = {"rgb": rgb_HWC, "infrared": heat_HW, "depth": depth_HW}
    parts = tuple(distance_HW < 0 for distance_HW in cells)
    everywhere_HW = np.ones((SIZE, SIZE), dtype=bool)
    return Scene(images, everywhere_HW, parts_PHW=parts)


def draw_capsule(rng: Generator) -> Scene:
    """A two-coloured capsule filled with warm powder, print on its right half."""
    pose = casual_pose(rng, shift=1.5, degrees=2)
    rim_HW = box(pose, 54, 27, 27)
    across_HW = np.clip(pose.y_HW / 27, -1, 1)
    round_HW = np.sqrt(np.clip(1 - across_HW**2, 0.03, 1))
    tray_HWC = shade(flat(jitter(rng, (0.20, 0.22, 0.24))), 1 + 0.025 * smooth_noise(rng, 2))
    below_HWC = shade(tray_HWC, 1 - 0.35 * cover(box(pose.moved(2, 4), 55, 28, 28), softness=8))
    left, right = jitter(rng, (0.62, 0.26, 0.22), 0.025), jitter(rng, (0.80, 0.72, 0.52), 0.025)
    shell_HWC = over(flat(left), right, cover(2 - pose.x_HW, 2))
    shine_HW = 1 + 0.22 * np.exp(-(((pose.y_HW + 11) / 4) ** 2))
    seam_HW = 1 - 0.25 * np.exp(-(((pose.x_HW - 2) / 1.8) ** 2))
    gain_HW = (0.55 + 0.45 * round_HW) * shine_HW * seam_HW * (1 + 0.025 * smooth_noise(rng, 3))
    plain_HWC = over(below_HWC, shade(shell_HWC, gain_HW), cover(rim_HW))
    letters = pose.moved(26, 4)
    text_HW = np.maximum(box(letters, 16, 7), 1.5 - np.abs(letters.x_HW % 10 - 5))
    printed_HWC = over(plain_HWC, (0.14, 0.11, 0.11), 0.9 * cover(text_HW))
    powder_HW = cover(ellipse(pose, 48, 22), 8) * (1 + 0.04 * smooth_noise(rng, 6))
    heat_HW = 0.16 + 0.10 * cover(rim_HW, 3) + 0.50 * powder_HW
    level_HW = table_depth(rng)
    depth_HW = level_HW - cover(rim_HW) * (0.006 + 0.012 * _dome(rim_HW))
    images = {"rgb": printed_HWC, "infrared": heat_HW, "depth": depth_HW}
    bare = {"rgb": plain_HWC, "infrared": np.full((SIZE, SIZE), 0.16), "depth": level_HW}
    print_HW = text_HW < 0.6
    return Scene(images, rim_HW < -1, bare, (print_HW,))


def _dome(rim_HW: Image) -> Image:
    """Height of a round bar over its own rim distance, 0 at the rim to 1 along its middle."""
    return np.sqrt(1 - np.clip(1 + rim_HW / 27, 0, 1) ** 2)
