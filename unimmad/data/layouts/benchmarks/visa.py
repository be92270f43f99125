"""VisA as its authors publish it, split by its one-class table.

ROOT/split_csv/1cls.csv                     object,split,label,image,mask
ROOT/CLASS/Data/Images/Normal/NNNN.JPG
ROOT/CLASS/Data/Images/Anomaly/NNN.JPG
ROOT/CLASS/Data/Masks/Anomaly/NNN.png

The paths in the table are relative to ROOT. Written from the published description; it has not met the real files.
"""

from __future__ import annotations

from pathlib import Path

from unimmad.data.index import Modality
from unimmad.data.layouts.layout import LayoutInfo, ReadSet
from unimmad.data.layouts.own.rows import Row, existing, read_rows
from unimmad.data.layouts.scan import ANOMALY, GOOD, SPLITS, Notices, check_folder, new_sample
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice

CLASSES = (
    *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"),
    *("pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
)
TABLE = Path("split_csv") / "1cls.csv"
COLUMNS = ("object", "split", "label", "image")
DEFECTS = {"normal": GOOD, "anomaly": ANOMALY}


class VisALayout:
    """RGB; all anomalies are of one kind."""

    info = LayoutInfo(
        name="visa",
        title="VisA",
        field="industry",
        classes=CLASSES,
        modalities=(Modality(name="rgb", slot=0, kind="rgb"),),
        citation="Zou et al., ECCV 2022",
    )

    def recognises(self, root: Path) -> bool:
        return (root / TABLE).is_file()

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        check_folder(root)
        return [ReadSet([_sample(root, row) for row in read_rows(root / TABLE, COLUMNS)])]


def _sample(root: Path, row: Row) -> SourceSample:
    defect = DEFECTS.get(row.cells["label"])
    split = next((split for split in SPLITS if split == row.cells["split"]), None)
    if defect is None or split is None:
        raise ValueError(
            f"{row.where}: label {row.cells['label']!r}, split {row.cells['split']!r}; "
            f"wanted {' or '.join(DEFECTS)}, and {' or '.join(SPLITS)}"
        )
    image = existing(root / row.cells["image"], row)
    mask = None if defect == GOOD else SourceFile.of(existing(root / row.need("mask"), row))
    return new_sample(row.cells["object"], split, defect, image.stem, {"rgb": SourceFile.of(image)}, mask)
