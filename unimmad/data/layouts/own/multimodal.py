"""MVTec-AD's multi-modal sibling (that of MVTec 3D-AD) for one's own images: a folder for each modality, masks beside.

ROOT/CLASS/train/good/MODALITY/NNN.*
ROOT/CLASS/test/DEFECT/MODALITY/NNN.*
ROOT/CLASS/test/DEFECT/gt/NNN.*         optional for good
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from unimmad.data.index import Split
from unimmad.data.layouts.benchmarks.positions import read_positions
from unimmad.data.layouts.encode import npy_bytes
from unimmad.data.layouts.layout import OWN_CALIBRATION_FRACTION, LayoutInfo, ReadSet
from unimmad.data.layouts.scan import (
    GOOD,
    Notices,
    check_called_alike,
    defect_folders,
    find_masks,
    holds_images,
    images_by_stem,
    is_normal,
    new_sample,
    normal_folders,
    read_classes,
    visible_folders,
)
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice

MASK_FOLDER = "gt"
POSITION_FOLDER = "xyz"
"""H x W x 3 positions in a sensor's frame, in metres; their third channel is the depth."""


class MultimodalLayout:
    """One to several modalities, called as their folders."""

    info = LayoutInfo(
        name="multimodal",
        title="multi-modal layout (a folder a modality)",
        calibration_fraction=OWN_CALIBRATION_FRACTION,
    )

    def recognises(self, root: Path) -> bool:
        normal = [path for folder in visible_folders(root) for path in normal_folders(folder)]
        return any(holds_images(inner) for folder in normal for inner in visible_folders(folder))

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        return [ReadSet(read_classes(root, notices, partial(_read_class, choices=choices, notices=notices)))]


def _read_class(class_folder: Path, choices: Mapping[str, ModalityChoice], notices: Notices) -> list[SourceSample]:
    samples, names = [], set[str]()
    for split, folder, _ in defect_folders(class_folder, notices):
        modalities = {path.name: path for path in visible_folders(folder) if path.name != MASK_FOLDER}
        modalities = {name: path for name, path in modalities.items() if not _is_skipped(choices.get(name))}
        samples += read_defect(class_folder.name, split, folder, modalities, notices, _source_file)
        names.update(modalities)
    note_without_images(class_folder, names, samples, notices)
    return samples


def _is_skipped(choice: ModalityChoice | None) -> bool:
    return choice is not None and choice.kind == "skip"


def note_without_images(
    class_folder: Path, modalities: Iterable[str], samples: Sequence[SourceSample], notices: Notices
) -> None:
    """Say which of a class's modalities none of its samples has."""
    used = {name for sample in samples for name in sample.images}
    for name in sorted(set(modalities) - used):
        notices.add(f"{class_folder}: modality {name} left out, none of its folders has an image")


def read_defect(
    class_name: str,
    split: Split,
    folder: Path,
    modalities: Mapping[str, Path],
    notices: Notices,
    source_file: Callable[[str, Path], SourceFile],
) -> list[SourceSample]:
    """The samples of one defect: files of one stem in the modalities' folders, masks in ``gt``.

    Args:
        class_name: for keys and samples.
        split: theirs.
        folder: ``CLASS/SPLIT/DEFECT``.
        modalities: the folder of each modality, by the modality's name.
        notices: takes what the user should know.
        source_file: makes the file to write of a modality's name and a path.

    Raises:
        ValueError: two files of one stem, an anomalous sample without its mask in a folder of masks, or the images of a
            sample are called otherwise in each modality.
    """
    images = {name: images_by_stem(path, notices) for name, path in modalities.items()}
    check_called_alike(folder, images)
    mask_folder = folder / MASK_FOLDER
    defect = GOOD if is_normal(folder) else folder.name
    if split == "test" and defect != GOOD and not mask_folder.is_dir():
        notices.add(f"{folder}: no {MASK_FOLDER} folder; its samples are written without a mask")
    stems = sorted({stem for paths in images.values() for stem in paths})
    of_sample = {stem: {name: found[stem] for name, found in images.items() if stem in found} for stem in stems}
    first = {stem: next(iter(paths.values())) for stem, paths in of_sample.items()}
    marked = images_by_stem(mask_folder, notices) if mask_folder.is_dir() else None
    masks = find_masks(marked, first, defect, mask_folder, notices)
    samples = []
    for stem, paths in of_sample.items():
        files = {name: source_file(name, path) for name, path in paths.items()}
        samples.append(new_sample(class_name, split, defect, stem, files, masks.get(stem), folder.name))
    return samples


def _source_file(modality: str, path: Path) -> SourceFile:
    if modality.lower() == POSITION_FOLDER:
        return SourceFile(name=str(path), suffix=".npy", read=partial(_depth_of_positions, path))
    return SourceFile.of(path)


def _depth_of_positions(path: Path) -> bytes:
    """The third channel as NPY; where the sensor measured nothing: NaN."""
    positions_HW3, measured_HW = read_positions(path)
    return npy_bytes(np.where(measured_HW, positions_HW3[:, :, 2], np.nan).astype(np.float32))
