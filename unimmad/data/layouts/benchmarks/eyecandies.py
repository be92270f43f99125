"""Eyecandies as its authors publish it.

ROOT/CLASS/train/data/ID_image_4.png        lit from the left, as in published multi-modal results
ROOT/CLASS/train/data/ID_depth.png          16 bit, from 0 at the nearest to 65535 at the farthest point
ROOT/CLASS/train/data/ID_info_depth.yaml    normalization: {min, max}, of that picture
ROOT/CLASS/val/data/...                     normal, too: the calibration split
ROOT/CLASS/test_public/data/...             and ID_mask.png, ID_bumps_mask.png, ... : black for normal samples
ROOT/CLASS/test_private/...                 left out: its masks are not public

The depth is kept with its background. Written from the published description; it has not met the real files.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unimmad.data.decode import decode_image, decode_mask_pixels
from unimmad.data.decode_limits import read_image_file
from unimmad.data.depth_range import MAX_DEPTH_METRES
from unimmad.data.index import Modality, Split
from unimmad.data.layouts.encode import npy_bytes
from unimmad.data.layouts.layout import LayoutInfo, ReadSet
from unimmad.data.layouts.scan import ANOMALY, GOOD, Notices, new_sample, read_classes, visible_folders
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice
from unimmad.serialization.documents import MAX_YAML_BYTES, parse_yaml, read_limited

CLASSES = (
    *("CandyCane", "ChocolateCookie", "ChocolatePraline", "Confetto", "GummyBear"),
    *("HazelnutTruffle", "LicoriceSandwich", "Lollipop", "Marshmallow", "PeppermintCandy"),
)
SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "val": "calibration", "test_public": "test"}
PRIVATE = "test_private"
IMAGE = "_image_4.png"
DEFECTS = ("bumps", "dents", "colors", "normals")
DEPTH_SCALE = 0.1
"""The scenes are ten times life size: scaled as published preparations do, so that candies have the size of candies
and their depths the range of those of MVTec 3D-AD."""


class EyecandiesLayout:
    """RGB and depth; a defect is called by its kinds of masks."""

    info = LayoutInfo(
        name="eyecandies",
        title="Eyecandies",
        field="industry",
        classes=CLASSES,
        modalities=(
            Modality(name="rgb", slot=0, kind="rgb"),
            Modality(name="depth", slot=1, kind="depth", scale=DEPTH_SCALE),
        ),
        citation="Bonfiglioli et al., ACCV 2022",
    )

    def recognises(self, root: Path) -> bool:
        return any((folder / "test_public" / "data").is_dir() for folder in visible_folders(root))

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        samples = read_classes(root, notices, _read_class)
        if any((folder / PRIVATE).is_dir() for folder in visible_folders(root)):
            notices.add(f"{root}: {PRIVATE} left out, its masks are not public")
        return [ReadSet(samples)]


def _read_class(class_folder: Path) -> list[SourceSample]:
    return [sample for name, split in SPLIT_FOLDERS.items() for sample in _read_split(class_folder, name, split)]


def _read_split(class_folder: Path, folder_name: str, split: Split) -> list[SourceSample]:
    folder = class_folder / folder_name / "data"
    samples = []
    for image in sorted(folder.glob(f"*{IMAGE}")):
        sample_id = image.name.removesuffix(IMAGE)
        depth = _beside(folder, sample_id, "depth.png")
        bounds = _beside(folder, sample_id, "info_depth.yaml")
        mask = _beside(folder, sample_id, "mask.png") if split == "test" else None
        defect = _defect(folder, sample_id, mask) if mask else GOOD
        files = {
            "rgb": SourceFile.of(image),
            "depth": SourceFile(name=str(depth), suffix=".npy", read=partial(_depth, depth, bounds)),
        }
        marked = SourceFile.of(mask) if mask and defect != GOOD else None
        samples.append(new_sample(class_folder.name, split, defect, sample_id, files, marked))
    return samples


def _beside(folder: Path, sample_id: str, name: str) -> Path:
    path = folder / f"{sample_id}_{name}"
    if not path.is_file():
        raise ValueError(f"{path} is missing beside {sample_id}{IMAGE}; download the class again")
    return path


def _defect(folder: Path, sample_id: str, mask: Path) -> str:
    if not _marks(mask):
        return GOOD
    paths = {kind: folder / f"{sample_id}_{kind}_mask.png" for kind in DEFECTS}
    kinds = [kind for kind, path in paths.items() if path.is_file() and _marks(path)]
    return "_".join(kinds) or ANOMALY


def _marks(mask: Path) -> bool:
    return bool(decode_mask_pixels(read_image_file(mask), ".png", str(mask)).any())


def _depth(path: Path, bounds: Path) -> bytes:
    """In the scene's metres, float32 H x W."""
    stored_HW = decode_image(read_image_file(path), ".png", str(path))
    if stored_HW.ndim != 2 or stored_HW.dtype != np.uint16:
        raise ValueError(f"{path}: {stored_HW.dtype} of shape {stored_HW.shape}; wanted one channel of 16 bits")
    nearest, farthest = _bounds(bounds)
    share_HW = stored_HW.astype(np.float64) / np.iinfo(np.uint16).max
    return npy_bytes((nearest + share_HW * (farthest - nearest)).astype(np.float32))


def _bounds(path: Path) -> tuple[float, float]:
    try:
        content: Any = parse_yaml(read_limited(path, MAX_YAML_BYTES), str(path))
        limits = content["normalization"]
        nearest, farthest = float(limits["min"]), float(limits["max"])
        if not all(abs(bound) <= MAX_DEPTH_METRES for bound in (nearest, farthest)):  # which NaN is not
            raise ValueError
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{path}: wanted normalization: with the numbers min and max, in metres; download it again"
        ) from None
    return nearest, farthest
