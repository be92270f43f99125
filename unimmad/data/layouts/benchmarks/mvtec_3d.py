"""MVTec 3D-AD as its authors publish it.

ROOT/CLASS/train/good/rgb/NNN.png           ROOT/CLASS/train/good/xyz/NNN.tiff
ROOT/CLASS/validation/good/rgb, xyz         normal, too: the calibration split
ROOT/CLASS/test/DEFECT/rgb, xyz, gt/NNN.png

The depth is the third channel of xyz; the plane under the object is removed (see ``positions``): it and what was
not measured become NaN, which is background (see ``prepare``). Written from the published description; it has not
met the real files.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from unimmad.data.index import Modality, Split
from unimmad.data.layouts.benchmarks.positions import object_mask, read_positions
from unimmad.data.layouts.encode import npy_bytes
from unimmad.data.layouts.layout import LayoutInfo, ReadSet
from unimmad.data.layouts.own.multimodal import POSITION_FOLDER, note_without_images, read_defect
from unimmad.data.layouts.scan import GOOD, Notices, read_classes, visible_folders
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice

CLASSES = (*("bagel", "cable_gland", "carrot", "cookie", "dowel", "foam", "peach", "potato", "rope", "tire"),)
SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "validation": "calibration", "test": "test"}


class MVTec3DLayout:
    """RGB, and depth in metres without its background."""

    info = LayoutInfo(
        name="mvtec_3d",
        title="MVTec 3D-AD",
        field="industry",
        classes=CLASSES,
        modalities=(Modality(name="rgb", slot=0, kind="rgb"), Modality(name="depth", slot=1, kind="depth")),
        citation="Bergmann et al., VISAPP 2022",
    )

    def recognises(self, root: Path) -> bool:
        found = [
            folder.name for folder in visible_folders(root) if (folder / "train" / GOOD / POSITION_FOLDER).is_dir()
        ]
        return bool(found) and set(found) <= set(CLASSES)

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        return [ReadSet(read_classes(root, notices, partial(_read_class, notices=notices)))]


def _read_class(class_folder: Path, notices: Notices) -> list[SourceSample]:
    samples = []
    for name, split in SPLIT_FOLDERS.items():
        for folder in visible_folders(class_folder / name):
            modalities = {"rgb": folder / "rgb", "depth": folder / POSITION_FOLDER}
            samples += read_defect(class_folder.name, split, folder, modalities, notices, _source_file)
    note_without_images(class_folder, (modality.name for modality in MVTec3DLayout.info.modalities), samples, notices)
    return samples


def _source_file(modality: str, path: Path) -> SourceFile:
    if modality == "depth":
        return SourceFile(name=str(path), suffix=".npy", read=partial(_depth_of_object, path))
    return SourceFile.of(path)


def _depth_of_object(path: Path) -> bytes:
    positions_HW3, measured_HW = read_positions(path)
    object_HW = object_mask(positions_HW3, measured_HW)
    return npy_bytes(np.where(object_HW, positions_HW3[:, :, 2], np.nan).astype(np.float32))
