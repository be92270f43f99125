"""The three medical sets that BMAD publishes with masks: BraTS2021 (MRI), liver CT, and RESC (retinal OCT).

ROOT/train/good/img/NAME.png                or right in good
ROOT/valid/good/img/NAME.png                or val; normal, too: the calibration split
ROOT/test/good/img/NAME.png
ROOT/test/Ungood/img/NAME.png
ROOT/test/Ungood/label/NAME.png

The liver's archive has the levels the other way round (test/img/Ungood, test/label/Ungood): read, too. The abnormal
part of valid is left out. BMAD holds only FLAIR slices of BraTS; further sequences of the same slices may lie beside
img in folders t1, t2, t1ce. Written from the published description; it has not met the real files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unimmad.data.index import Modality, Split
from unimmad.data.layouts.layout import LayoutInfo, ReadSet
from unimmad.data.layouts.scan import (
    ANOMALY,
    GOOD,
    Notices,
    check_folder,
    find_mask,
    images_by_stem,
    new_sample,
    visible_folders,
)
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice

SPLIT_FOLDERS: dict[str, Split] = {"train": "train", "valid": "calibration", "val": "calibration", "test": "test"}
ABNORMAL = "ungood"
IMAGES = "img"
MASKS = "label"
CITATION = "Bao et al., CVPR Workshops 2024 (BMAD)"


@dataclass(frozen=True)
class BMADLayout:
    """One class; the images in ``img`` are its first modality, folders beside it are those of their names."""

    info: LayoutInfo
    folder_names: tuple[str, ...]
    """How the published folder's name starts, in lower case: nothing else tells the three apart."""

    def recognises(self, root: Path) -> bool:
        folder = _set_folder(root)
        named = any(path.name.lower().startswith(self.folder_names) for path in (root, folder))
        return named and (folder / "train").is_dir() and _part(folder / "test", ABNORMAL, "") is not None

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        check_folder(root)
        folder = _set_folder(root)
        if not (folder / "train").is_dir() or not (folder / "test").is_dir():
            raise ValueError(f"{root} is not in the layout of BMAD; wanted {root / 'train' / GOOD} and {root / 'test'}")
        samples = []
        for name, split in SPLIT_FOLDERS.items():
            for label in (GOOD, ABNORMAL):
                if label == GOOD or split == "test":
                    samples += self._read_part(folder / name, split, label, notices)
                elif split == "calibration" and _part(folder / name, label, ""):
                    notices.add(f"{folder / name}: abnormal images left out, only the normal ones serve calibration")
        return [ReadSet(samples)]

    def _read_part(self, folder: Path, split: Split, label: str, notices: Notices) -> list[SourceSample]:
        part = _part(folder, label, self.info.modalities[0].name)
        if part is None:
            return []
        known = [modality.name for modality in self.info.modalities]
        if unknown := set(part.images) - set(known):
            raise ValueError(f"{folder}: folder {min(unknown)} is none of {', '.join((IMAGES, MASKS, *known[1:]))}")
        if label != GOOD and part.masks is None:
            notices.add(f"{folder}: no {MASKS} folder; its abnormal samples are written without a mask")
        images = {name: images_by_stem(path, notices) for name, path in part.images.items()}
        masks = images_by_stem(part.masks, notices) if part.masks and label != GOOD else None
        defect = GOOD if label == GOOD else ANOMALY
        samples = []
        for stem, path in images[known[0]].items():
            files = {name: SourceFile.of(found[stem]) for name, found in images.items() if stem in found}
            mask = find_mask(masks, stem, defect, path, part.masks or folder)
            samples.append(new_sample(self.info.classes[0], split, defect, stem, files, mask))
        return samples


@dataclass(frozen=True)
class _Part:
    """Where one split's normal or abnormal images lie."""

    images: Mapping[str, Path]
    """By modality."""
    masks: Path | None


def _part(folder: Path, label: str, modality: str) -> _Part | None:
    """By label then ``img``, by label alone, or by ``img`` then label."""
    if by_label := _child(folder, label):
        images = _child(by_label, IMAGES)
        if images is None:
            return _Part({modality: by_label}, None)
        others = {path.name.lower(): path for path in visible_folders(by_label)}
        masks = others.pop(MASKS, None)
        del others[IMAGES]
        return _Part({modality: images, **others}, masks)
    by_kind = _child(folder, IMAGES)
    images = _child(by_kind, label) if by_kind else None
    if images is None:
        return None
    kind = _child(folder, MASKS)
    return _Part({modality: images}, _child(kind, label) if kind else None)


def _child(folder: Path, name: str) -> Path | None:
    return next((path for path in visible_folders(folder) if path.name.lower() == name), None)


def _set_folder(root: Path) -> Path:
    """``root``, or the only folder in it: archives are unpacked both ways."""
    inside = visible_folders(root)
    return inside[0] if len(inside) == 1 and not (root / "train").is_dir() else root


def _gray(*names: str) -> tuple[Modality, ...]:
    return tuple(Modality(name=name, slot=slot, kind="gray") for slot, name in enumerate(names))


BMAD_LAYOUTS = (
    BMADLayout(
        LayoutInfo(
            name="brats",
            title="BraTS",
            field="medicine",
            classes=("brats",),
            modalities=_gray("flair", "t1", "t2", "t1ce"),
            citation=f"Baid et al., 2021; {CITATION}",
        ),
        ("brats", "brain"),
    ),
    BMADLayout(
        LayoutInfo(
            name="liver_ct",
            title="Liver-CT",
            field="medicine",
            classes=("liver",),
            modalities=_gray("ct"),
            citation=f"Bilic et al., MedIA 2023; {CITATION}",
        ),
        ("hist_diy", "liver"),
    ),
    BMADLayout(
        LayoutInfo(
            name="retinal_oct",
            title="Retinal-OCT",
            field="medicine",
            classes=("retinal_edema",),
            modalities=_gray("oct"),
            citation=f"Hu et al., MedIA 2019; {CITATION}",
        ),
        ("resc", "retina"),
    ),
)
