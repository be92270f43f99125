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
    GROUND_TRUTH,
    Notices,
    defect_folders,
    find_masks,
    holds_images,
    images_by_stem,
    named,
    new_sample,
    normal_folders,
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
        return any(map(holds_images, (path for folder in visible_folders(root) for path in normal_folders(folder))))

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        samples = read_classes(root, notices, partial(read_class, modality=IMAGE, notices=notices))
        modality = single_modality((sample.images[IMAGE] for sample in samples), choices, root)
        if modality in choices and choices[modality].kind == "depth":
            notices.add(f"{root}: one image a sample, read as depth since --modality {modality} says so")
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
            continue  # said with all others that are broken, once their turn comes
        seen = True
    return "gray" if seen else "rgb"


def read_class(class_folder: Path, modality: str, notices: Notices) -> list[SourceSample]:
    """All samples of one class; their one image is called ``modality``."""
    for masks in visible_folders(named(class_folder, GROUND_TRUTH)):
        if not (named(class_folder, "test") / masks.name).is_dir():
            notices.add(f"{masks}: left out, there is no {class_folder / 'test' / masks.name}")
    return [
        sample
        for split, folder, defect in defect_folders(class_folder, notices)
        for sample in _read_defect(class_folder, split, folder, defect, modality, notices)
    ]


def _read_defect(
    class_folder: Path, split: Split, folder: Path, defect: str, modality: str, notices: Notices
) -> list[SourceSample]:
    all_masks = named(class_folder, GROUND_TRUTH)
    has_masks = all_masks.is_dir() and split == "test"
    if not has_masks and split == "test" and defect != GOOD:
        notices.add(f"{class_folder}: no {GROUND_TRUTH} folder; anomalous samples are written without a mask")
    for inner in visible_folders(folder):
        notices.add(f"{inner}: left out, a folder beside images")
    images = images_by_stem(folder, notices)
    mask_folder = all_masks / folder.name
    masks = find_masks(
        images_by_stem(mask_folder, notices) if has_masks else None, images, defect, mask_folder, notices
    )
    return [
        new_sample(
            class_folder.name, split, defect, stem, {modality: SourceFile.of(path)}, masks.get(stem), folder.name
        )
        for stem, path in images.items()
    ]
