"""BTAD (beanTech anomaly detection) as its authors publish it.

ROOT/CLASS/train/ok/NAME.bmp or .png        CLASS: 01, 02, 03
ROOT/CLASS/test/ok, ko/NAME.bmp or .png
ROOT/CLASS/ground_truth/ko/NAME.png         .bmp in 03

BMP becomes PNG. Written from the published description; it has not met the real files.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from unimmad.data.index import Modality, Split
from unimmad.data.layouts.layout import LayoutInfo, ReadSet
from unimmad.data.layouts.scan import ANOMALY, GOOD, Notices, new_sample, read_classes, visible_folders
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice

OK, KO = "ok", "ko"
PARTS: tuple[tuple[str, str, Split], ...] = (("train", OK, "train"), ("test", OK, "test"), ("test", KO, "test"))
"""Folder, folder in it, and the split that it makes."""
SUFFIXES = (".bmp", ".png")


class BTADLayout:
    """RGB; all anomalies are of one kind."""

    info = LayoutInfo(
        name="btad",
        title="BTAD",
        field="industry",
        classes=("01", "02", "03"),
        modalities=(Modality(name="rgb", slot=0, kind="rgb"),),
        citation="Mishra et al., ISIE 2021",
    )

    def recognises(self, root: Path) -> bool:
        found = [folder.name for folder in visible_folders(root) if (folder / "train" / OK).is_dir()]
        return bool(found) and set(found) <= set(self.info.classes)

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        return [ReadSet(read_classes(root, notices, partial(_read_class, notices=notices)))]


def _read_class(class_folder: Path, notices: Notices) -> list[SourceSample]:
    mask_folder = class_folder / "ground_truth" / KO
    masks = _pictures(mask_folder, notices)
    samples = []
    for folder, label, split in PARTS:
        defect = GOOD if label == OK else ANOMALY
        for stem, path in _pictures(class_folder / folder / label, notices).items():
            if label == KO and stem not in masks:
                raise ValueError(
                    f"{path} has no mask {stem}.png or {stem}.bmp in {mask_folder}; add it or remove the image"
                )
            mask = SourceFile.of(masks[stem]) if label == KO else None
            samples.append(new_sample(class_folder.name, split, defect, stem, {"rgb": SourceFile.of(path)}, mask))
    return samples


def _pictures(folder: Path, notices: Notices) -> dict[str, Path]:
    """By name without suffix; ValueError where two differ in their suffix only."""
    pictures: dict[str, Path] = {}
    others = 0
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() not in SUFFIXES:
            others += not path.name.startswith(".")
        elif path.stem in pictures:
            raise ValueError(f"{path} and {pictures[path.stem].name} name one sample twice; remove one of them")
        else:
            pictures[path.stem] = path
    if others:
        notices.add(f"{folder}: {others} files left out; read are {' and '.join(SUFFIXES)}")
    return pictures
