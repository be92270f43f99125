"""Real-IAD as its authors publish it, split by its tables for all five views.

ROOT/realiad_jsons/CLASS.json       {"meta": {"normal_class": "OK", "prefix": ...}, "train": [...], "test": [...]}
ROOT/realiad_1024/...               or realiad_512, realiad_256, realiad_raw

A record is {"category", "anomaly_class", "image_path", "mask_path"}; its paths follow ``prefix`` in the folder of
images. The archive of the tables may have been unpacked into a folder of its own name. As in the authors' code a test
image is normal where its class is the normal one, or where it has no mask: a view that does not show its object's
defect. Each view is a sample of its own. The tables for one view (realiad_jsons_sv) and for noisy training sets
(realiad_jsons_fuiad_*) are not read. Written from the published description; it has not met the real files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from unimmad.data.index import MAX_INDEX_BYTES, Modality, Split
from unimmad.data.layouts.benchmarks.mmad_index import inside
from unimmad.data.layouts.layout import LayoutInfo, ReadSet
from unimmad.data.layouts.scan import ANOMALY, GOOD, Notices, check_folder, new_sample
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice
from unimmad.serialization.documents import read_limited
from unimmad.serialization.validation import first_problem

CLASSES = (
    *("audiojack", "bottle_cap", "button_battery", "end_cap", "eraser", "fire_hood", "mint", "mounts", "pcb"),
    *("phone_battery", "plastic_nut", "plastic_plug", "porcelain_doll", "regulator", "rolled_strip_base"),
    *("sim_card_set", "switch", "tape", "terminalblock", "toothbrush", "toy", "toy_brick", "transistor1", "u_block"),
    *("usb", "usb_adaptor", "vcpill", "wooden_beads", "woodstick", "zipper"),
)
TABLES = "realiad_jsons"
IMAGE_FOLDERS = ("realiad_1024", "realiad_512", "realiad_256", "realiad_raw")
"""The first that is there is read: 1024 pixels, as the authors' experiments, before the others."""


Table = TypeVar("Table", bound=BaseModel)


class _Meta(BaseModel):
    normal_class: str
    prefix: str = ""


class _Record(BaseModel):
    category: str
    anomaly_class: str
    image_path: str
    mask_path: str | None = None


class _Table(BaseModel):
    meta: _Meta
    train: list[_Record]
    test: list[_Record]


class RealIADLayout:
    """RGB; a defect is called by the authors' two letters (AK, BX, CH, HS, PS, QS, YW, ZW)."""

    info = LayoutInfo(
        name="real_iad",
        title="Real-IAD",
        field="industry",
        classes=CLASSES,
        modalities=(Modality(name="rgb", slot=0, kind="rgb"),),
        citation="Wang et al., CVPR 2024",
    )

    def recognises(self, root: Path) -> bool:
        return (root / TABLES).is_dir()

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        check_folder(root)
        images = [root / name for name in IMAGE_FOLDERS if (root / name).is_dir()]
        if not images:
            raise ValueError(f"{root} has none of {', '.join(IMAGE_FOLDERS)}; unpack the images into one of them")
        if len(images) > 1:
            others = " and ".join(path.name for path in images[1:])
            notices.add(f"{root}: {images[0].name} is read, {others} left out; move it away to read another")
        tables = published_tables(root, TABLES)
        samples = [sample for path in tables for sample in _read_table(path, images[0], notices)]
        return [ReadSet(samples)]


def published_tables(root: Path, folder: str) -> list[Path]:
    """``ROOT/FOLDER/CLASS.json``, also where the archive was unpacked into a folder of its own name.

    Raises:
        ValueError: there is none.
    """
    folders = (root / folder, root / folder / folder)
    tables = next((found for place in folders if (found := sorted(place.glob("[!.]*.json")))), [])
    if not tables:
        raise ValueError(f"{root / folder} has no CLASS.json; unpack {folder}.zip there")
    return tables


def read_table(path: Path, model: type[Table]) -> Table:
    """A table; ValueError where it is something else."""
    try:
        return model.model_validate_json(read_limited(path, MAX_INDEX_BYTES))
    except ValidationError as error:
        raise ValueError(f"{path}: {first_problem(error)}; is it a table of Real-IAD?") from None


def _read_table(path: Path, images: Path, notices: Notices) -> list[SourceSample]:
    table = read_table(path, _Table)
    normal = [record for record in table.train if record.anomaly_class == table.meta.normal_class]
    if len(normal) < len(table.train):
        defective = len(table.train) - len(normal)
        notices.add(f"{path}: {defective} training images with defects left out, training takes normal samples only")
    parts: tuple[tuple[Split, list[_Record]], ...] = (("train", normal), ("test", table.test))
    return [
        _sample(record, split, table.meta, images, f"{path}: {split}, record {number}")
        for split, records in parts
        for number, record in enumerate(records)
    ]


def _sample(record: _Record, split: Split, meta: _Meta, images: Path, where: str) -> SourceSample:
    prefix = f"{meta.prefix.rstrip('/')}/" if meta.prefix else ""
    image = inside(images, prefix + record.image_path, where)
    if record.anomaly_class == meta.normal_class or not record.mask_path:
        defect, mask = GOOD, None
    else:
        defect = record.anomaly_class if record.anomaly_class != GOOD else ANOMALY
        mask = SourceFile.of(inside(images, prefix + record.mask_path, where))
    return new_sample(record.category, split, defect, image.stem, {"rgb": SourceFile.of(image)}, mask)
