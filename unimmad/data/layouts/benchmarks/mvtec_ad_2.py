"""MVTec AD 2 as its authors publish it.

ROOT/CLASS/train/good/NNN_LIGHT.png
ROOT/CLASS/validation/good/NNN_LIGHT.png                    normal, too: the calibration split
ROOT/CLASS/test_public/good, bad/NNN_LIGHT.png
ROOT/CLASS/test_public/ground_truth/bad/NNN_LIGHT_mask.png
ROOT/CLASS/test_private, test_private_mixed/...             left out: their labels are not public

LIGHT is regular, overexposed, underexposed or shift_N. Written from the published description; it has not met the
real files.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from unimmad.data.index import Modality, Split
from unimmad.data.layouts.layout import LayoutInfo, ReadSet
from unimmad.data.layouts.scan import (
    GOOD,
    Notices,
    find_mask,
    images_by_stem,
    new_sample,
    note_spare_masks,
    read_classes,
    visible_folders,
)
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice

PUBLIC = "test_public"
BAD = "bad"
PARTS: tuple[tuple[str, str, Split], ...] = (
    ("train", GOOD, "train"),
    ("validation", GOOD, "calibration"),
    (PUBLIC, GOOD, "test"),
    (PUBLIC, BAD, "test"),
)
"""Folder, folder in it, and the split that it makes."""
PRIVATE = ("test_private", "test_private_mixed")


class MVTecAD2Layout:
    """RGB in every class; the anomalies are all called ``bad``."""

    info = LayoutInfo(
        name="mvtec_ad_2",
        title="MVTec AD 2",
        field="industry",
        classes=("can", "fabric", "fruit_jelly", "rice", "sheet_metal", "vial", "wallplugs", "walnuts"),
        modalities=(Modality(name="rgb", slot=0, kind="rgb"),),
        citation="Heckler-Kram et al., 2025",
    )

    def recognises(self, root: Path) -> bool:
        return any((folder / PUBLIC / BAD).is_dir() for folder in visible_folders(root))

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        samples = read_classes(root, notices, partial(_read_class, notices=notices))
        if any((folder / name).is_dir() for folder in visible_folders(root) for name in PRIVATE):
            notices.add(f"{root}: {' and '.join(PRIVATE)} left out, their labels are not public")
        return [ReadSet(samples)]


def _read_class(class_folder: Path, notices: Notices) -> list[SourceSample]:
    mask_folder = class_folder / PUBLIC / "ground_truth" / BAD
    masks = images_by_stem(mask_folder, notices)
    note_spare_masks(masks, images_by_stem(class_folder / PUBLIC / BAD, Notices()), mask_folder, notices)
    samples = []
    for folder, defect, split in PARTS:
        for stem, path in images_by_stem(class_folder / folder / defect, notices).items():
            mask = None if defect == GOOD else find_mask(masks, stem, defect, path, mask_folder)
            samples.append(new_sample(class_folder.name, split, defect, stem, {"rgb": SourceFile.of(path)}, mask))
    return samples
