"""Small datasets with one thing wrong in each, as sources on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from data.disk_sets import save
from numpy.typing import NDArray
from PIL import Image

from unimmad.audit.findings import Finding
from unimmad.audit.run import Audited, audit
from unimmad.audit.samples import samples_of_sets
from unimmad.data.layouts import find_sets
from unimmad.data.modality import parse_modality


def part(seed: int, side: int = 48) -> NDArray[np.uint8]:
    """A picture with outlines that sensors share, its own texture, and colours: H x W x 3."""
    draw = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    centre = side * (0.35 + 0.3 * draw.random(2))
    disc = np.hypot(rows - centre[0], columns - centre[1]) < side / 4
    surface = Image.fromarray(draw.normal(0, 25, (6, 6)).astype(np.float32)).resize((side, side))
    grey = 60 + 90 * disc + np.asarray(surface) + draw.normal(0, 2, (side, side))
    return np.clip(grey[:, :, None] * (1.0, 0.9, 0.7), 0, 255).astype(np.uint8)


def square_mask(top: int, left: int, side: int, of: int = 48) -> NDArray[np.uint8]:
    marked = np.zeros((of, of), np.uint8)
    marked[top : top + side, left : left + side] = 255
    return marked


def make_parts(root: Path, class_name: str = "part", suffix: str = ".png") -> Path:
    """Twelve normal images to train on, six normal and six with a hole to test: nothing is wrong with them."""
    folder = root / class_name
    for number in range(12):
        save(folder / "train" / "good" / f"{number:02d}{suffix}", part(number))
    for number in range(6):
        save(folder / "test" / "good" / f"{number:02d}{suffix}", part(100 + number))
        image, marked = part(200 + number), square_mask(4 + number, 8, 6)
        image[marked > 0] = 5
        save(folder / "test" / "hole" / f"{number:02d}{suffix}", image)
        save(folder / "ground_truth" / "hole" / f"{number:02d}_mask.png", marked)
    return root


def audited(*roots: Path, image_size: int = 48, modalities: Sequence[str] = ()) -> Audited:
    """Without features."""
    choices = [parse_modality(text) for text in modalities]
    found = [one for root in roots for one in find_sets(root, modalities=choices, calibration_fraction=0.0)]
    sets = [one.source for one in found]
    return audit(samples_of_sets(sets, show_progress=False), image_size=image_size, show_progress=False)


def told(found: Audited, check: str) -> Sequence[Finding]:
    return [one for one in found.findings if one.check == check]
