"""MVTec-AD's multi-modal sibling (that of MVTec 3D-AD): a folder for each modality, masks beside them.

ROOT/CLASS/train/good/MODALITY/NNN.*
ROOT/CLASS/test/DEFECT/MODALITY/NNN.*
ROOT/CLASS/test/DEFECT/gt/NNN.*         optional for good
"""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np

from unimmad.data.decode import decode_image
from unimmad.data.index import Split
from unimmad.data.layouts.scan import (
    GOOD,
    Notices,
    defect_folders,
    find_mask,
    images_by_stem,
    sample_key,
    visible_folders,
)
from unimmad.data.modality import ModalityChoice
from unimmad.data.source import SourceFile, SourceSample

MASK_FOLDER = "gt"
POSITION_FOLDER = "xyz"
"""H x W x 3 positions in a sensor's frame, in metres; their third channel is the depth."""


class MultimodalLayout:
    """One to several modalities, called as their folders."""

    name = "multimodal"
    description = "multi-modal layout (a folder a modality)"

    def recognises(self, class_folder: Path) -> bool:
        return bool(visible_folders(class_folder / "train" / GOOD))

    def read_class(
        self, class_folder: Path, choices: dict[str, ModalityChoice], notices: Notices
    ) -> list[SourceSample]:
        skipped = {choice.name for choice in choices.values() if choice.kind == "skip"}
        return [
            sample
            for split, folder in defect_folders(class_folder, notices)
            for sample in _read_defect(class_folder, split, folder, skipped, notices)
        ]


def _read_defect(
    class_folder: Path, split: Split, folder: Path, skipped: set[str], notices: Notices
) -> list[SourceSample]:
    images: dict[str, dict[str, Path]] = {
        modality.name: images_by_stem(modality, notices)
        for modality in visible_folders(folder)
        if modality.name != MASK_FOLDER and modality.name not in skipped
    }
    mask_folder = folder / MASK_FOLDER
    if split == "test" and folder.name != GOOD and not mask_folder.is_dir():
        notices.add(f"{folder}: no {MASK_FOLDER} folder; its samples are written without a mask")
    masks = images_by_stem(mask_folder, notices) if mask_folder.is_dir() else None
    samples = []
    for stem in sorted({stem for paths in images.values() for stem in paths}):
        paths = {modality: paths[stem] for modality, paths in images.items() if stem in paths}
        samples.append(
            SourceSample(
                key=sample_key(class_folder.name, split, folder.name, stem),
                class_name=class_folder.name,
                split=split,
                defect=folder.name,
                images={modality: _source_file(modality, path) for modality, path in paths.items()},
                mask=find_mask(masks, stem, folder.name, next(iter(paths.values())), mask_folder),
            )
        )
    return samples


def _source_file(modality: str, path: Path) -> SourceFile:
    if modality.lower() == POSITION_FOLDER:
        return SourceFile(name=str(path), suffix=".npy", read=partial(_depth_of_positions, path))
    return SourceFile.of(path)


def _depth_of_positions(path: Path) -> bytes:
    """The third channel as NPY; where all three are 0 the sensor measured nothing: NaN."""
    positions = decode_image(path.read_bytes(), path.suffix.lower(), str(path))
    if positions.ndim != 3 or positions.shape[2] != 3 or positions.dtype.kind != "f":
        raise ValueError(
            f"{path}: {positions.dtype} of shape {positions.shape}; wanted H x W x 3, real numbers. "
            f"Rename the folder {POSITION_FOLDER} if it holds something else"
        )
    depth_HW = np.where((positions != 0).any(axis=2), positions[:, :, 2], np.nan).astype(np.float32)
    buffer = io.BytesIO()
    np.save(buffer, depth_HW, allow_pickle=False)
    return buffer.getvalue()
