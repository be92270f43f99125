"""The datasets, classes and kinds of defect of the synthetic data; and one sample of it, drawn from
its coordinates alone (seed, class, split, number).

Defects that one modality alone shows (``DefectKind.modalities`` says it for every kind, and is kept to the bit):

=============  =======================================  =========================================
modality       classes                                  kinds
=============  =======================================  =========================================
rgb            cookie, rope, module, panel, capsule     mould, oil, flux, discoloured, misprint
depth          cookie, rope, module, panel, capsule     dent, flattened, lifted_part, bulge, squeezed
infrared       module, panel, capsule                   hot_spot, cold_cell, underfilled
t1ce           brain_ventricles, brain_upper            enhancing
t2             brain_ventricles, brain_upper            old_bleed
=============  =======================================  =========================================

``oedema`` shows in T2 and FLAIR, ``tumour`` in all four sequences. Cloth, tiles and nut have colour only.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from unimmad.data.index import DatasetEntry, Modality, Split
from unimmad.data.synthetic import brain, defects, electronics, materials, solids
from unimmad.data.synthetic.canvas import SIZE, Region
from unimmad.data.synthetic.defects import DefectKind
from unimmad.data.synthetic.scene import DEPTH_RANGE, Scene, photograph

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


@dataclass(frozen=True)
class ClassSpec:
    """One class: how a normal scene of it is drawn, and what can go wrong with it."""

    name: str
    draw: Callable[[Generator], Scene]
    defects: tuple[DefectKind, ...]


@dataclass(frozen=True)
class SetSpec:
    """One dataset: classes that share their modalities."""

    name: str
    description: str
    entry: DatasetEntry
    classes: tuple[ClassSpec, ...]


RGB = ("rgb",)
RGB_DEPTH = ("rgb", "depth")
ALL_THREE = ("rgb", "infrared", "depth")

CLOTH = ClassSpec(
    "cloth",
    materials.draw_cloth,
    (
        DefectKind("bent_threads", RGB, defects.swirl(RGB, (30, 80), radii=(15, 23))),
        DefectKind("stain", RGB, defects.stain((0.30, 0.20, 0.14))),
        DefectKind("tear", RGB, defects.hole((0.07, 0.06, 0.06), radii=(7, 14))),
    ),
)
TILES = ClassSpec(
    "tiles",
    materials.draw_tiles,
    (
        DefectKind("chipped_glaze", RGB, defects.crust((0.70, 0.58, 0.47), grain=4, radii=(5, 12))),
        DefectKind("grease", RGB, defects.stain((0.24, 0.26, 0.16), radii=(8, 17))),
        DefectKind("scratches", RGB, defects.scratches(1.9)),
    ),
)
NUT = ClassSpec(
    "nut",
    materials.draw_nut,
    (
        DefectKind("rust", RGB, defects.stain((0.45, 0.24, 0.12), radii=(6, 13))),
        DefectKind("notch", RGB, defects.bite((6, 12))),
        DefectKind("scratches", RGB, defects.scratches(0.6)),
    ),
)
COOKIE = ClassSpec(
    "cookie",
    solids.draw_cookie,
    (
        DefectKind("hole", RGB_DEPTH, defects.hole((0.30, 0.20, 0.14))),
        DefectKind("dent", ("depth",), defects.dent((0.003, 0.009))),
        DefectKind("mould", RGB, defects.crust((0.48, 0.56, 0.46), grain=4)),
        DefectKind("bitten", RGB_DEPTH, defects.bite()),
    ),
)
ROPE = ClassSpec(
    "rope",
    solids.draw_rope,
    (
        DefectKind("loose_strand", RGB_DEPTH, defects.swirl(RGB_DEPTH, (50, 110), radii=(17, 24))),
        DefectKind("flattened", ("depth",), defects.dent((0.006, 0.018), radii=(11, 18))),
        DefectKind("oil", RGB, defects.stain((0.16, 0.14, 0.12))),
        DefectKind("cut", RGB_DEPTH, defects.hole((0.22, 0.17, 0.12))),
    ),
)
MODULE = ClassSpec(
    "module",
    electronics.draw_module,
    (
        DefectKind("missing_part", ALL_THREE, defects.missing_part),
        DefectKind("hot_spot", ("infrared",), defects.warmth((0.08, 0.28), radii=(9, 15))),
        DefectKind("lifted_part", ("depth",), defects.part_off({"depth": (-0.002, -0.007)})),
        DefectKind("flux", RGB, defects.stain((0.66, 0.58, 0.34))),
    ),
)
PANEL = ClassSpec(
    "panel",
    electronics.draw_panel,
    (
        DefectKind("cold_cell", ("infrared",), defects.part_off({"infrared": (-0.1, -0.32)})),
        DefectKind("discoloured", RGB, defects.stain((0.50, 0.44, 0.30))),
        DefectKind("bulge", ("depth",), defects.dent((-0.0015, -0.006))),
        DefectKind("dirt", ("rgb", "infrared"), defects.dirt((0.62, 0.53, 0.4), (0.05, 0.16))),
    ),
)
CAPSULE = ClassSpec(
    "capsule",
    electronics.draw_capsule,
    (
        DefectKind("underfilled", ("infrared",), defects.warmth((-0.09, -0.26), radii=(9, 16))),
        DefectKind("squeezed", ("depth",), defects.dent((0.005, 0.014), radii=(10, 16))),
        DefectKind("misprint", RGB, defects.missing_part),
        DefectKind("cracked", RGB_DEPTH, defects.hole((0.30, 0.24, 0.22), (0.001, 0.006))),
    ),
)
LESIONS = (
    DefectKind("oedema", ("t2", "flair"), defects.lesion({"t2": (0.07, 0.3), "flair": (0.07, 0.34)}, (6, 13))),
    DefectKind("enhancing", ("t1ce",), defects.lesion({"t1ce": (0.07, 0.36)}, (5, 10))),
    DefectKind("old_bleed", ("t2",), defects.lesion({"t2": (-0.1, -0.2)}, (8, 13))),
    DefectKind(
        "tumour",
        brain.SEQUENCES,
        defects.lesion({"t1": (-0.05, -0.2), "t1ce": (0.05, 0.2), "t2": (0.06, 0.26), "flair": (0.06, 0.28)}, (6, 13)),
    ),
)
BRAINS = (
    ClassSpec("brain_ventricles", brain.draw_ventricle_slice, LESIONS),
    ClassSpec("brain_upper", brain.draw_upper_slice, LESIONS),
)


def _entry(field: str, names: tuple[str, ...]) -> DatasetEntry:
    modalities = []
    for slot, name in enumerate(names):
        if name == "depth":
            modalities.append(Modality(name=name, slot=slot, kind="depth", scale=DEPTH_RANGE, invalid=0))
        else:
            modalities.append(Modality(name=name, slot=slot, kind="rgb" if name == "rgb" else "gray"))
    return DatasetEntry(field=field, modalities=tuple(modalities))


SETS = (
    SetSpec("materials", "colour images of cloth, tiles and nuts", _entry("industry", RGB), (CLOTH, TILES, NUT)),
    SetSpec("solids", "colour and depth of cookies and ropes", _entry("industry", RGB_DEPTH), (COOKIE, ROPE)),
    SetSpec(
        "devices",
        "colour, infrared and depth of circuit modules, solar panels and capsules",
        _entry("electronics", ALL_THREE),
        (MODULE, PANEL, CAPSULE),
    ),
    SetSpec("brains", "T1, T1 with contrast agent, T2 and FLAIR", _entry("medicine", brain.SEQUENCES), BRAINS),
)
"""Every set, class and kind of defect there is."""
