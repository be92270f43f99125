"""BTAD (beanTech anomaly detection) as its authors publish it.

ROOT/CLASS/train/ok/NAME.bmp or .png        CLASS: 01, 02, 03
ROOT/CLASS/test/ok, ko/NAME.bmp or .png
ROOT/CLASS/ground_truth/ko/NAME.png         .bmp in 03

BMP becomes PNG. Written from the published description; it has not met the real files.
"""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from unimmad.data.decode_limits import check_decoded, read_image_file
from unimmad.data.index import Modality, Split
from unimmad.data.layouts.encode import png_bytes
from unimmad.data.layouts.layout import LayoutInfo, ReadSet
from unimmad.data.layouts.scan import ANOMALY, GOOD, Notices, new_sample, read_classes, visible_folders
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice

OK, KO = "ok", "ko"
PARTS: tuple[tuple[str, str, Split], ...] = (("train", OK, "train"), ("test", OK, "test"), ("test", KO, "test"))
"""Folder, folder in it, and the split that it makes."""
SUFFIXES = (".bmp", ".png")
CHANNELS = 3


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
            mask = _source_file(masks[stem]) if label == KO else None
            samples.append(new_sample(class_folder.name, split, defect, stem, {"rgb": _source_file(path)}, mask))
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


def _source_file(path: Path) -> SourceFile:
    if path.suffix.lower() == ".bmp":
        return SourceFile(name=str(path), suffix=".png", read=partial(_bmp_as_png, path))
    return SourceFile.of(path)


def _bmp_as_png(path: Path) -> bytes:
    data = read_image_file(path)
    try:
        with Image.open(io.BytesIO(data), formats=("BMP",)) as image:
            check_decoded(image.height, image.width, image.height * image.width * CHANNELS)
            return png_bytes(np.asarray(image if image.mode == "L" else image.convert("RGB")))
    except UnidentifiedImageError:  # its own message names an object in memory
        raise ValueError(f"{path}: does not open as BMP; replace or remove it") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: does not open as BMP ({error}); replace or remove it") from None
