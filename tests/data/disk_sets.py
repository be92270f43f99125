"""Small data sets on disk, in both layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def save(path: Path, array: np.ndarray) -> Path:
    """Write an array as the type that the path's suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)
    return path


def rgb(seed: int, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def mask(height: int = 12, width: int = 16) -> np.ndarray:
    marked = np.zeros((height, width), dtype=np.uint8)
    marked[3:6, 4:9] = 255
    return marked


def make_mvtec(root: Path, class_name: str = "bolt", suffix: str = ".png") -> Path:
    """Three normal images to train on, one normal and two bent ones to test."""
    folder = root / class_name
    for number in range(3):
        save(folder / "train" / "good" / f"{number:03d}{suffix}", rgb(number))
    save(folder / "test" / "good" / f"000{suffix}", rgb(10))
    for number in range(2):
        save(folder / "test" / "bent" / f"{number:03d}{suffix}", rgb(20 + number))
        save(folder / "ground_truth" / "bent" / f"{number:03d}_mask.png", mask())
    return root


def make_multimodal(root: Path, class_name: str = "bagel") -> Path:
    """RGB and 16-bit depth: two normal samples to train on, one normal and one cut one to test."""
    for part, count in (("train/good", 2), ("test/good", 1), ("test/cut", 1)):
        folder = root / class_name / part
        for number in range(count):
            save(folder / "rgb" / f"{number:03d}.png", rgb(number))
            depth = np.full((12, 16), 40000, dtype=np.uint16)
            depth[0] = 0
            depth[6:] = 50000
            save(folder / "depth" / f"{number:03d}.png", depth)
            if part == "test/cut":
                save(folder / "gt" / f"{number:03d}.png", mask())
    return root
