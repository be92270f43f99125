"""The layout of MVTec-AD for one's own images: one image a sample, masks in a folder of their own.

ROOT/CLASS/train/good/NAME.*
ROOT/CLASS/test/DEFECT/NAME.*
ROOT/CLASS/ground_truth/DEFECT/NAME_mask.* or NAME.*
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from unimmad.data.decode import has_one_channel
from unimmad.data.index import Split
from unimmad.data.layouts.layout import OWN_CALIBRATION_FRACTION, LayoutInfo, ReadSet
from unimmad.data.layouts.scan import (
    GOOD,
    Notices,
    defect_folders,
    find_mask,
    images_by_stem,
    new_sample,
    note_spare_masks,
    read_classes,
    visible_folders,
)
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice

IMAGE = "image"
"""What the one modality is called until all files are known."""


class MVTecLayout:
    """One modality: ``rgb``, or ``gray`` where all images have one channel, or as the user names it."""

    info = LayoutInfo(name="mvtec", title="MVTec-AD layout", calibration_fraction=OWN_CALIBRATION_FRACTION)

    def recognises(self, root: Path) -> bool:
        return any(images_by_stem(folder / "train" / GOOD, Notices()) for folder in visible_folders(root))

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        samples = read_classes(root, notices, partial(read_class, modality=IMAGE, notices=notices))
        modality = single_modality((sample.images[IMAGE] for sample in samples), choices, root)
        return [ReadSet([replace(sample, images={modality: sample.images[IMAGE]}) for sample in samples])]


def single_modality(files: Iterable[SourceFile], choices: dict[str, ModalityChoice], root: Path) -> str:
    """The name of a set's only modality: the user's, else ``gray`` where all of ``files`` are, else ``rgb``.

    Files are read up to the first one in colours.

    Raises:
        ValueError: the user named more than one.
    """
    if len(choices) > 1:
        raise ValueError(
            f"{root} has one image a sample (MVTec-AD layout), but --modality names "
            f"{len(choices)}: {', '.join(choices)}; give one at most"
        )
    if choices:
        return next(iter(choices))
    seen = False
    for file in files:
        try:
            if not has_one_channel(file.read(), file.suffix, file.name):
                return "rgb"
        except (OSError, ValueError):
            continue  # said once its turn comes to be written
        seen = True
    return "gray" if seen else "rgb"


def read_class(class_folder: Path, modality: str, notices: Notices) -> list[SourceSample]:
    """All samples of one class; their one image is called ``modality``."""
    for masks in visible_folders(class_folder / "ground_truth"):
        if not (class_folder / "test" / masks.name).is_dir():
            notices.add(f"{masks}: left out, there is no {class_folder / 'test' / masks.name}")
    return [
        sample
        for split, folder in defect_folders(class_folder, notices)
        for sample in _read_defect(class_folder, split, folder, modality, notices)
    ]


def _read_defect(class_folder: Path, split: Split, folder: Path, modality: str, notices: Notices) -> list[SourceSample]:
    mask_folder = class_folder / "ground_truth" / folder.name
    has_masks = (class_folder / "ground_truth").is_dir() and split == "test"
    if not has_masks and split == "test" and folder.name != GOOD:
        notices.add(f"{class_folder}: no ground_truth folder; anomalous samples are written without a mask")
    masks = images_by_stem(mask_folder, notices) if has_masks else None
    images = images_by_stem(folder, notices)
    note_spare_masks(masks, images, mask_folder, notices)
    samples = []
    for stem, path in images.items():
        mask = find_mask(masks, stem, folder.name, path, mask_folder)
        samples.append(new_sample(class_folder.name, split, folder.name, stem, {modality: SourceFile.of(path)}, mask))
    return samples
