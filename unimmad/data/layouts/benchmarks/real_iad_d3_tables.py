"""Real-IAD D3 as it is downloaded: a table a class, and the class's unpacked archive.

ROOT/realiad_d3_jsons/CLASS.json    {"train": [...], "validation": [...], "test": [...]}
ROOT/realiad_d3_raw/CLASS/...       each archive unpacked

A record is {"anomaly_class", "image_path", "ps_path", "xyz_path", "mask_path"}, its paths relative to the class's
folder and its class OK where it is normal. Beside a position map *_XYZ_*.tiff lies its point cloud, *_PCD_*.pcd.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from unimmad.data.index import Split
from unimmad.data.layouts.aligned import joined_mask
from unimmad.data.layouts.benchmarks.mmad_index import inside
from unimmad.data.layouts.benchmarks.point_cloud import CLOUD_SUFFIX
from unimmad.data.layouts.benchmarks.real_iad import published_tables, read_table
from unimmad.data.layouts.benchmarks.real_iad_d3_files import source_file
from unimmad.data.layouts.scan import ANOMALY, GOOD, Notices, new_sample, visible_folders
from unimmad.data.layouts.source_set import SourceSample

TABLES, IMAGES = "realiad_d3_jsons", "realiad_d3_raw"
NORMAL = "OK"
_SPLITS: dict[str, Split] = {"train": "train", "validation": "calibration", "test": "test"}


class _Record(BaseModel):
    anomaly_class: str
    image_path: str
    ps_path: str | None = None
    xyz_path: str | None = None
    mask_path: str | None = None


class _Table(BaseModel):
    train: list[_Record]
    validation: list[_Record] = []
    test: list[_Record]


def has_tables(root: Path) -> bool:
    """Whether ``root`` is laid out so."""
    return (root / TABLES).is_dir()


def read_tables(root: Path, classes: Sequence[str], skipped: set[str], notices: Notices) -> list[SourceSample]:
    """The samples of every table whose class's folder is there.

    Args:
        root: the folder of both.
        classes: what to call the classes; tables and folders may spell - as _.
        skipped: modalities whose files need not be there.
        notices: takes what is left out.

    Raises:
        ValueError: no table or no class's folder, another table, or a file that is missing or outside of its folder.
    """
    folders = {_plain(folder.name): folder for folder in visible_folders(root / IMAGES)}
    tables = {path: folders.get(_plain(path.stem)) for path in published_tables(root, TABLES)}
    if not any(tables.values()):
        raise ValueError(f"{root / IMAGES} has no folder of a class; unpack the classes' archives there")
    names = {_plain(name): name for name in classes}
    samples = []
    for path, folder in tables.items():
        if folder is not None:
            class_name = names.get(_plain(path.stem), path.stem)
            samples += _read_table(path, class_name, folder, skipped, notices)
    return samples


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _read_table(path: Path, class_name: str, folder: Path, skipped: set[str], notices: Notices) -> list[SourceSample]:
    table = read_table(path, _Table)
    samples = []
    for part, split in _SPLITS.items():
        records: list[_Record] = getattr(table, part)
        normal = [record for record in records if record.anomaly_class == NORMAL]
        if split != "test" and len(normal) < len(records):
            notices.add(
                f"{path}: {len(records) - len(normal)} {part} images with defects left out, training and calibration "
                "take normal samples only"
            )
        without = [record for record in records if record.anomaly_class != NORMAL and not record.mask_path]
        if split == "test" and without:
            notices.add(f"{path}: {len(without)} {part} images with defects have no mask_path; written without a mask")
        for number, record in enumerate(records):
            if split == "test" or record.anomaly_class == NORMAL:
                where = f"{path}: {part}, record {number}"
                samples.append(_sample(record, split, class_name, folder, skipped, where))
    return samples


def _sample(
    record: _Record, split: Split, class_name: str, folder: Path, skipped: set[str], where: str
) -> SourceSample:
    rgb = inside(folder, record.image_path, where)
    paths = {"rgb": rgb}
    if record.ps_path and "pseudo_3d" not in skipped:
        paths["pseudo_3d"] = inside(folder, record.ps_path, where)
    if record.xyz_path and "depth" not in skipped:
        cloud = record.xyz_path.replace("_XYZ_", "_PCD_").rsplit(".", 1)[0] + CLOUD_SUFFIX
        only_cloud = not (folder / record.xyz_path).is_file() and (folder / cloud).is_file()
        paths["depth"] = inside(folder, cloud if only_cloud else record.xyz_path, where)
    defect, mask = GOOD, None
    if record.anomaly_class != NORMAL:
        defect = record.anomaly_class if record.anomaly_class != GOOD else ANOMALY
        mask = joined_mask([inside(folder, record.mask_path, where)], rgb) if record.mask_path else None
    files = {modality: source_file(modality, path, rgb) for modality, path in paths.items()}
    return new_sample(class_name, split, defect, rgb.stem, files, mask)
