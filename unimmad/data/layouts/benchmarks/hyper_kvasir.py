"""Hyper-Kvasir as its authors publish it, split for anomaly detection.

ROOT/labeled-images/lower-gi-tract/anatomical-landmarks/cecum/NAME.jpg          normal, and ileum
ROOT/labeled-images/lower-gi-tract/quality-of-mucosal-views/bbps-2-3/NAME.jpg   normal
ROOT/segmented-images/images/NAME.jpg                                           polyps
ROOT/segmented-images/masks/NAME.jpg

The dataset itself has no split. Normal folders and polyps are those of published work on it (Tian et al., MICCAI
2021), which tests on 500 of 2,100 normal images; its list of files is not known here, so the same share is chosen by
a hash of the names: the same files on every machine, but other ones than in published tables. Written from the
published description; it has not met the real files.
"""

from __future__ import annotations

from pathlib import Path

from unimmad.data.index import Modality
from unimmad.data.layouts.calibration import shuffled
from unimmad.data.layouts.layout import LayoutInfo, ReadSet
from unimmad.data.layouts.scan import GOOD, Notices, check_folder, find_mask, images_by_stem, new_sample
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice

CLASS = "colon"
LOWER = Path("labeled-images") / "lower-gi-tract"
NORMAL_FOLDERS = (
    LOWER / "anatomical-landmarks" / "cecum",
    LOWER / "anatomical-landmarks" / "ileum",
    LOWER / "quality-of-mucosal-views" / "bbps-2-3",
)
POLYPS = Path("segmented-images")
POLYP = "polyp"
TEST_SHARE = 500 / 2100
SPLIT_SEED = 0


class HyperKvasirLayout:
    """Endoscopy in RGB; polyps are the anomalies."""

    info = LayoutInfo(
        name="hyper_kvasir",
        title="Hyper-Kvasir",
        field="medicine",
        classes=(CLASS,),
        modalities=(Modality(name="rgb", slot=0, kind="rgb"),),
        citation="Borgli et al., Scientific Data 2020",
    )

    def recognises(self, root: Path) -> bool:
        return (root / LOWER).is_dir() and (root / POLYPS).is_dir()

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        check_folder(root)
        for folder in (LOWER, POLYPS / "images", POLYPS / "masks"):
            if not (root / folder).is_dir():
                raise ValueError(f"{root} is not Hyper-Kvasir: {folder} is missing; unpack the archives of both parts")
        return [ReadSet(_normal(root, notices) + _polyps(root, notices))]


def _normal(root: Path, notices: Notices) -> list[SourceSample]:
    paths = {
        f"{folder.name}/{stem}": path
        for folder in NORMAL_FOLDERS
        for stem, path in images_by_stem(root / folder, notices).items()
    }
    tested = set(shuffled(list(paths), SPLIT_SEED)[: round(TEST_SHARE * len(paths))])
    return [
        new_sample(CLASS, "test" if name in tested else "train", GOOD, path.stem, {"rgb": SourceFile.of(path)}, None)
        for name, path in sorted(paths.items())
    ]


def _polyps(root: Path, notices: Notices) -> list[SourceSample]:
    masks = images_by_stem(root / POLYPS / "masks", notices)
    samples = []
    for stem, path in images_by_stem(root / POLYPS / "images", notices).items():
        mask = find_mask(masks, stem, POLYP, path, root / POLYPS / "masks")
        samples.append(new_sample(CLASS, "test", POLYP, stem, {"rgb": SourceFile.of(path)}, mask))
    return samples
