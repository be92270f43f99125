"""MVTec LOCO AD as its authors publish it.

ROOT/CLASS/train/good/NNN.png
ROOT/CLASS/validation/good/NNN.png                          normal, too: the calibration split
ROOT/CLASS/test/good, DEFECT/NNN.png                        DEFECT: logical_anomalies, structural_anomalies
ROOT/CLASS/ground_truth/DEFECT/NNN/NNN.png                  one mask or several an image
ROOT/CLASS/defects_config.json                              not read

A mask's value tells the kind of the defect, and defects_config.json how much of a region has to be found (its
saturation). Both are left out here: a pixel is anomalous where any of its image's masks is not 0. Written from the
published description; it has not met the real files.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from unimmad.data.index import Modality, Split
from unimmad.data.layouts.aligned import joined_mask
from unimmad.data.layouts.layout import LayoutInfo, ReadSet
from unimmad.data.layouts.scan import (
    GOOD,
    Notices,
    images_by_stem,
    new_sample,
    read_classes,
    visible_folders,
)
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice

LOGICAL, STRUCTURAL = "logical_anomalies", "structural_anomalies"
PARTS: tuple[tuple[str, str, Split], ...] = (
    ("train", GOOD, "train"),
    ("validation", GOOD, "calibration"),
    ("test", GOOD, "test"),
    ("test", LOGICAL, "test"),
    ("test", STRUCTURAL, "test"),
)
"""Folder, folder in it, and the split that it makes."""


class MVTecLOCOLayout:
    """RGB; the two kinds of anomalies are the defects."""

    info = LayoutInfo(
        name="mvtec_loco",
        title="MVTec LOCO AD",
        field="industry",
        classes=("breakfast_box", "juice_bottle", "pushpins", "screw_bag", "splicing_connectors"),
        modalities=(Modality(name="rgb", slot=0, kind="rgb"),),
        citation="Bergmann et al., IJCV 2022",
    )

    def recognises(self, root: Path) -> bool:
        return any((folder / "test" / LOGICAL).is_dir() for folder in visible_folders(root))

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        return [ReadSet(read_classes(root, notices, partial(_read_class, notices=notices)))]


def _read_class(class_folder: Path, notices: Notices) -> list[SourceSample]:
    samples = []
    for folder, defect, split in PARTS:
        for stem, path in images_by_stem(class_folder / folder / defect, notices).items():
            masks = [] if defect == GOOD else _masks(class_folder / "ground_truth" / defect / stem, path, notices)
            mask = joined_mask(masks, path) if masks else None
            samples.append(new_sample(class_folder.name, split, defect, stem, {"rgb": SourceFile.of(path)}, mask))
    return samples


def _masks(folder: Path, image: Path, notices: Notices) -> list[Path]:
    masks = list(images_by_stem(folder, notices).values())
    if not masks:
        raise ValueError(f"{image} has no mask in {folder}; add it or remove the image")
    return masks
