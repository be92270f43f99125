"""Real-IAD D3 in the folders that its authors' code reads.

ROOT/CLASS/train/GOOD/rgb/SAMPLE/*L05*RGB*.jpg      one of several lights, as in the authors' code
ROOT/CLASS/train/GOOD/ps/NAME.jpg                   or .png: pseudo-3D, by photometric stereo
ROOT/CLASS/train/GOOD/xyz/NAME.tiff                 H x W x 3 positions; or xyz/NAME.pcd, pcd/NAME.pcd: point clouds
ROOT/CLASS/test/GOOD, DEFECT/rgb, ps, xyz
ROOT/CLASS/test/DEFECT/gt/rgb/NAME.png              or right in gt

Whether one sample's files have one name in its folders was not found: they are paired by name where all agree, else by
their order, as the authors' code does, where there are equally many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from unimmad.data.index import Split
from unimmad.data.layouts.aligned import joined_mask
from unimmad.data.layouts.benchmarks.point_cloud import CLOUD_SUFFIX
from unimmad.data.layouts.benchmarks.real_iad_d3_files import source_file
from unimmad.data.layouts.own.multimodal import note_without_images
from unimmad.data.layouts.scan import (
    GOOD,
    SPLITS,
    Notices,
    holds_images,
    images_by_stem,
    new_sample,
    read_classes,
    visible_folders,
)
from unimmad.data.layouts.source_set import SourceFile, SourceSample

RGB_PATTERN = "*L05*RGB*.jpg"
PSEUDO_3D_FOLDER = "ps"
DEPTH_FOLDERS = ("xyz", "pcd")
"""The first with positions is read, else the first with point clouds."""


def is_d3_class(folder: Path) -> bool:
    """Whether it has normal training images in the fifth light."""
    return any(next(part.glob(f"rgb/*/{RGB_PATTERN}"), None) is not None for part in _good(folder / "train"))


def read_folders(root: Path, modalities: Sequence[str], notices: Notices) -> list[SourceSample]:
    """The samples of all class folders; ValueError where files are missing or not known to go together."""
    return read_classes(root, notices, partial(_read_class, modalities=modalities, notices=notices))


def _good(folder: Path) -> list[Path]:
    return [part for part in visible_folders(folder) if part.name.lower() == GOOD]


def _read_class(class_folder: Path, modalities: Sequence[str], notices: Notices) -> list[SourceSample]:
    samples = []
    for split in SPLITS:
        for part in visible_folders(class_folder / split):
            if split == "test" or part.name.lower() == GOOD:
                samples += _read_part(class_folder.name, split, part, notices)
            else:
                notices.add(f"{part}: left out, training takes normal samples (GOOD) only")
    note_without_images(class_folder, modalities, samples, notices)
    return samples


def _read_part(class_name: str, split: Split, part: Path, notices: Notices) -> list[SourceSample]:
    pictures = {folder.name: _picture(folder) for folder in visible_folders(part / "rgb")}
    others = {
        modality: _paired(list(pictures), files, folder, notices) for modality, folder, files in _sensors(part, notices)
    }
    defect = GOOD if part.name.lower() == GOOD else part.name
    masks: Mapping[str, Path] = {}
    if defect != GOOD:
        folder = next((path for path in (part / "gt" / "rgb", part / "gt") if path.is_dir()), None)
        if folder is None:
            notices.add(f"{part}: no gt folder; its samples are written without a mask")
        else:
            masks = _paired(list(pictures), images_by_stem(folder, notices), folder, notices)
    samples = []
    for name, rgb in pictures.items():
        files = {"rgb": SourceFile.of(rgb)}
        files |= {modality: source_file(modality, found[name], rgb) for modality, found in others.items()}
        mask = joined_mask([masks[name]], rgb) if masks else None
        samples.append(new_sample(class_name, split, defect, name, files, mask))
    return samples


def _sensors(part: Path, notices: Notices) -> Iterator[tuple[str, Path, dict[str, Path]]]:
    """The sensors beside RGB that ``part`` has: modality, folder, its files by stem."""
    if (folder := part / PSEUDO_3D_FOLDER).is_dir():
        yield "pseudo_3d", folder, images_by_stem(folder, notices)
    folders = [folder for name in DEPTH_FOLDERS if (folder := part / name).is_dir()]
    if not folders:
        return
    positions = [folder for folder in folders if holds_images(folder)]
    folder = next(iter(positions or [folder for folder in folders if _clouds(folder)] or folders))
    yield "depth", folder, images_by_stem(folder, notices) if positions else _clouds(folder)


def _clouds(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("[!.]*")) if path.suffix.lower() == CLOUD_SUFFIX}


def _picture(folder: Path) -> Path:
    found = sorted(folder.glob(RGB_PATTERN))
    if len(found) != 1:
        raise ValueError(f"{folder} has {len(found)} files {RGB_PATTERN}; wanted one, the picture in the fifth light")
    return found[0]


def _paired(names: Sequence[str], files: Mapping[str, Path], folder: Path, notices: Notices) -> dict[str, Path]:
    """The file of each sample: by name, else by order.

    Raises:
        ValueError: more or fewer files than samples.
    """
    if set(names) == set(files):
        return dict(files)
    if len(names) != len(files):
        raise ValueError(
            f"{folder}: {len(files)} files, but rgb has {len(names)} samples, and their names do not agree: which go "
            "together is not known; complete or empty the folder"
        )
    notices.add("files of one sample differ in name (xyz, ps, gt against rgb): paired by their order")
    return dict(zip(names, files.values(), strict=True))
