"""Real-IAD D3 in the folders that its authors' code reads.

ROOT/CLASS/train/GOOD/rgb/SAMPLE/*L05*RGB*.jpg      one of several lights, as in the authors' code
ROOT/CLASS/train/GOOD/ps/NAME.jpg                   or .png: pseudo-3D, by photometric stereo
ROOT/CLASS/train/GOOD/xyz/NAME.tiff                 H x W x 3 positions; their third channel is the depth
ROOT/CLASS/test/GOOD, DEFECT/rgb, ps, xyz
ROOT/CLASS/test/DEFECT/gt/rgb/NAME.png              or right in gt

Facts that were not found, and what is done about them: the unit of xyz, so that who reads it must say it; whether one
sample's files have one name in its folders, so that files are paired by name where all agree, else by their order, as
the authors' code does, where there are equally many. The sensors differ in resolution: all is brought to the size of
RGB. Written from the authors' code; it has not met the real files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from unimmad.data.index import Modality, Split
from unimmad.data.layouts.aligned import aligned_array, aligned_image, joined_mask
from unimmad.data.layouts.benchmarks.positions import read_positions
from unimmad.data.layouts.encode import npy_bytes
from unimmad.data.layouts.layout import LayoutInfo, ReadSet
from unimmad.data.layouts.own.multimodal import note_without_images
from unimmad.data.layouts.scan import (
    GOOD,
    SPLITS,
    Notices,
    images_by_stem,
    new_sample,
    read_classes,
    visible_folders,
)
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice

CLASSES = (
    *("audio_jack_socket", "common_mode_filter", "connector_housing-female", "crimp_st_cable_mount_box"),
    *("dc_power_connector", "ethernet_connector", "ferrite_bead", "fork_crimp_terminal", "fuse_holder"),
    *("headphone_jack_socket", "humidity_sensor", "knob-cap", "lattice_block_plug", "lego_pin_connector_plate"),
    *("lego_propeller", "limit-switch", "miniature_lifting_motor", "power_jack", "purple-clay-pot"),
    "telephone_spring_switch",
)
RGB_PATTERN = "*L05*RGB*.jpg"
FOLDERS = {"pseudo_3d": "ps", "depth": "xyz"}
"""The folder of each modality but RGB."""


class RealIADD3Layout:
    """RGB, pseudo-3D as a picture, and depth in the unit that the user says."""

    info = LayoutInfo(
        name="real_iad_d3",
        title="Real-IAD D3",
        field="industry",
        classes=CLASSES,
        modalities=(
            Modality(name="rgb", slot=0, kind="rgb"),
            Modality(name="pseudo_3d", slot=1, kind="rgb"),
            Modality(name="depth", slot=2, kind="depth"),
        ),
        citation="Zhu et al., CVPR 2025",
    )

    def recognises(self, root: Path) -> bool:
        found = [folder for folder in visible_folders(root) if any(_lit(part) for part in _good(folder / "train"))]
        return bool(found) and {folder.name for folder in found} <= set(CLASSES)

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        samples = read_classes(root, notices, partial(_read_class, notices=notices))
        first = next((sample.images["depth"].name for sample in samples if "depth" in sample.images), None)
        if first and "depth" not in choices:
            raise ValueError(
                f"{first}: Real-IAD D3's description does not say the unit of its positions; say --modality "
                "depth=depth:SCALE, the metres of a stored 1 (0.001 for millimetres), or --modality depth=skip"
            )
        return [ReadSet(samples)]


def _good(folder: Path) -> list[Path]:
    return [part for part in visible_folders(folder) if part.name.lower() == GOOD]


def _lit(part: Path) -> bool:
    return next(part.glob(f"rgb/*/{RGB_PATTERN}"), None) is not None


def _read_class(class_folder: Path, notices: Notices) -> list[SourceSample]:
    samples = []
    for split in SPLITS:
        for part in visible_folders(class_folder / split):
            if split == "test" or part.name.lower() == GOOD:
                samples += _read_part(class_folder.name, split, part, notices)
            else:
                notices.add(f"{part}: left out, training takes normal samples (GOOD) only")
    note_without_images(class_folder, (modality.name for modality in RealIADD3Layout.info.modalities), samples, notices)
    return samples


def _read_part(class_name: str, split: Split, part: Path, notices: Notices) -> list[SourceSample]:
    pictures = {folder.name: _picture(folder) for folder in visible_folders(part / "rgb")}
    others = {
        modality: _paired(list(pictures), images_by_stem(part / folder, notices), part / folder, notices)
        for modality, folder in FOLDERS.items()
        if (part / folder).is_dir()
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
        files |= {modality: _source_file(modality, found[name], rgb) for modality, found in others.items()}
        mask = joined_mask([masks[name]], rgb) if masks else None
        samples.append(new_sample(class_name, split, defect, name, files, mask))
    return samples


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


def _source_file(modality: str, path: Path, rgb: Path) -> SourceFile:
    if modality == "depth":
        return SourceFile(name=str(path), suffix=".npy", read=partial(_depth, path, rgb))
    return aligned_image(path, rgb)


def _depth(path: Path, rgb: Path) -> bytes:
    """The third channel as stored, in the size of ``rgb``; NaN where nothing was measured."""
    positions_HW3, measured_HW = read_positions(path)
    return npy_bytes(aligned_array(np.where(measured_HW, positions_HW3[:, :, 2], np.nan).astype(np.float32), rgb))
