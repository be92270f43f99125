"""One sample of the synthetic data, from its coordinates alone: (seed, class, split, number)."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from unimmad.data.index import Split
from unimmad.data.synthetic.canvas import SIZE, Region
from unimmad.data.synthetic.catalogue import ClassSpec
from unimmad.data.synthetic.defects import DefectKind
from unimmad.data.synthetic.scene import photograph

WEAKEST = 0.5
"""Strength of the faintest defects; 1 is that of the plainest."""


@dataclass(frozen=True)
class Drawing:
    """A sample's images as its sensors store them, by modality, and where it is defective."""

    images: dict[str, NDArray[np.uint8] | NDArray[np.uint16]]
    mask_HW: Region


def draw_sample(seed: int, spec: ClassSpec, split: Split, number: int, defect: DefectKind | None) -> Drawing:
    """Draw one sample.

    The same coordinates with another ``defect``, or none, give the same object under the same light, with the same
    noise: outside ``mask_HW``, and in every modality that ``defect`` does not name, the images are equal.
    """
    scene = spec.draw(_rng(seed, spec, split, number, "scene"))
    normal = photograph(scene.images, _rng(seed, spec, split, number, "sensor"))
    if defect is None:
        return Drawing(normal, np.zeros((SIZE, SIZE), dtype=bool))
    rng = _rng(seed, spec, split, number, "defect")
    damage = defect.apply(scene, rng, rng.uniform(WEAKEST, 1))
    damaged = {name: damage.images[name] for name in defect.modalities}
    spoiled = photograph(scene.images | damaged, _rng(seed, spec, split, number, "sensor"))
    images = dict(normal)
    for name in defect.modalities:
        inside = damage.region_HW if normal[name].ndim == 2 else damage.region_HW[..., None]
        images[name] = np.where(inside, spoiled[name], normal[name])
    return Drawing(images, damage.region_HW)


def _rng(seed: int, spec: ClassSpec, split: Split, number: int, purpose: str) -> Generator:
    return np.random.default_rng([seed, zlib.crc32(f"{spec.name}/{split}/{purpose}".encode()), number])
