"""The layout of MVTec-AD: one image a sample, masks in a folder of their own.

ROOT/CLASS/train/good/NAME.*
ROOT/CLASS/test/DEFECT/NAME.*
ROOT/CLASS/ground_truth/DEFECT/NAME_mask.* or NAME.*
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from unimmad.data.decode import decode_image
from unimmad.data.index import Split
from unimmad.data.layouts.scan import GOOD, Notices, defect_folders, find_mask, images_by_stem, sample_key
from unimmad.data.modality import ModalityChoice
from unimmad.data.source import SourceFile, SourceSample

PROBED_IMAGES = 3


class MVTecLayout:
    """One modality: ``rgb``, or ``gray`` where the first images have one channel, or as the user names it."""

    name = "mvtec"
    description = "MVTec-AD layout"

    def recognises(self, class_folder: Path) -> bool:
        return bool(images_by_stem(class_folder / "train" / GOOD, Notices()))

    def read_class(
        self, class_folder: Path, choices: dict[str, ModalityChoice], notices: Notices
    ) -> list[SourceSample]:
        modality = _modality_name(class_folder, choices)
        return [
            sample
            for split, folder in defect_folders(class_folder, notices)
            for sample in _read_defect(class_folder, split, folder, modality, notices)
        ]


def _modality_name(class_folder: Path, choices: dict[str, ModalityChoice]) -> str:
    if len(choices) > 1:
        raise ValueError(
            f"{class_folder.parent} has one image a sample (MVTec-AD layout), but --modality names "
            f"{len(choices)}: {', '.join(choices)}; give one at most"
        )
    if choices:
        return next(iter(choices))
    files = [SourceFile.of(path) for path in images_by_stem(class_folder / "train" / GOOD, Notices()).values()]
    first = islice(files, PROBED_IMAGES)
    single = [decode_image(file.read(), file.suffix, file.name).ndim == 2 for file in first]
    return "gray" if single and all(single) else "rgb"


def _read_defect(class_folder: Path, split: Split, folder: Path, modality: str, notices: Notices) -> list[SourceSample]:
    mask_folder = class_folder / "ground_truth" / folder.name
    has_masks = (class_folder / "ground_truth").is_dir() and split == "test"
    if not has_masks and split == "test" and folder.name != GOOD:
        notices.add(f"{class_folder}: no ground_truth folder; anomalous samples are written without a mask")
    masks = images_by_stem(mask_folder, notices) if has_masks else None
    return [
        SourceSample(
            key=sample_key(class_folder.name, split, folder.name, stem),
            class_name=class_folder.name,
            split=split,
            defect=folder.name,
            images={modality: SourceFile.of(path)},
            mask=find_mask(masks, stem, folder.name, path, mask_folder),
        )
        for stem, path in images_by_stem(folder, notices).items()
    ]
