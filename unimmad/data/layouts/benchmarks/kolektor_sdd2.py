"""KolektorSDD2 as its authors publish it.

ROOT/train/NNNNN.png, NNNNN_GT.png          the mask of every image, black where it is normal
ROOT/test/NNNNN.png, NNNNN_GT.png

The published training images hold defects, since the set was made for supervised methods: they are left out. Written
from the published description; it has not met the real files.
"""

from __future__ import annotations

from pathlib import Path

from unimmad.data.decode import decode_mask_pixels
from unimmad.data.decode_limits import read_image_file
from unimmad.data.index import Modality, Split
from unimmad.data.layouts.layout import LayoutInfo, ReadSet
from unimmad.data.layouts.scan import ANOMALY, GOOD, SPLITS, Notices, check_folder, images_by_stem, new_sample
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice

CLASS = "surface"
MASK_ENDING = "_GT"


class KolektorSDD2Layout:
    """RGB; one class, and all anomalies are of one kind."""

    info = LayoutInfo(
        name="kolektor_sdd2",
        title="KolektorSDD2",
        field="industry",
        classes=(CLASS,),
        modalities=(Modality(name="rgb", slot=0, kind="rgb"),),
        citation="Bozic et al., Computers in Industry 2021",
    )

    def recognises(self, root: Path) -> bool:
        return any((root / "train").glob(f"*{MASK_ENDING}.png")) and (root / "test").is_dir()

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        check_folder(root)
        for split in SPLITS:
            if not (root / split).is_dir():
                raise ValueError(f"{root} is not KolektorSDD2: {split} is missing; unpack the archive again")
        return [ReadSet([sample for split in SPLITS for sample in _read_split(root / split, split, notices)])]


def _read_split(folder: Path, split: Split, notices: Notices) -> list[SourceSample]:
    files = images_by_stem(folder, notices)
    samples, defective = [], 0
    for stem, path in files.items():
        if stem.endswith(MASK_ENDING):
            continue
        mask = files.get(stem + MASK_ENDING)
        if mask is None:
            raise ValueError(f"{path} has no mask {stem}{MASK_ENDING}.png beside it; add it or remove the image")
        marked = bool(decode_mask_pixels(read_image_file(mask), mask.suffix.lower(), str(mask)).any())
        if marked and split == "train":
            defective += 1
            continue
        defect = ANOMALY if marked else GOOD
        images = {"rgb": SourceFile.of(path)}
        samples.append(new_sample(CLASS, split, defect, stem, images, SourceFile.of(mask) if marked else None))
    if defective:
        notices.add(f"{folder}: {defective} images with defects left out, training takes normal samples only")
    return samples
