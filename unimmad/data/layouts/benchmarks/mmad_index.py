"""The index that UniMMAD's authors released with their prepared copies of the nine sets: one JSON file.

{"train": {CLASS_SUFFIX: [record, ...]}, "test": {...}}, where the suffix tells the dataset and a record is
{img_path: [one a modality], img_type: [rgb | gray | depth | wofg_depth, ...], mask_path, cls_name, specie_name,
anomaly: 0 or 1}

Paths are relative to the file. Depths are NPY of H x W x 2 or more: channel 0 the depth in metres, the last the
foreground, which wofg_depth does without. Modalities are called by their type; a modality keeps its place in the
records as its slot. Images, masks and depths are brought to the size of their record's first image. Written from the
published description; it has not met the real files.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from unimmad.data.decode import decode_image
from unimmad.data.index import MAX_INDEX_BYTES, Modality, ModalityKind
from unimmad.data.layouts.aligned import aligned_image, joined_mask
from unimmad.data.layouts.encode import npy_bytes
from unimmad.data.layouts.layout import LayoutInfo, ReadSet
from unimmad.data.layouts.scan import ANOMALY, GOOD, Notices, new_sample
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice
from unimmad.serialization.documents import read_limited
from unimmad.serialization.validation import first_problem

DATASETS: dict[str, tuple[str, str]] = {
    "mvtec": ("mvtec_ad", "industry"),
    "visa1cls": ("visa", "industry"),
    "mvtec3d": ("mvtec_3d", "industry"),
    "EyePre": ("eyecandies", "industry"),
    "MulSen_AD": ("mulsen_ad", "industry"),
    "BratsAD1K": ("brats", "medicine"),
    "LiverAD": ("liver_ct", "medicine"),
    "RetinaAD": ("retinal_oct", "medicine"),
    "HyperAD": ("hyper_kvasir", "medicine"),
}
"""Name and field of the dataset that a class name's suffix stands for."""
KINDS: dict[str, ModalityKind] = {"rgb": "rgb", "gray": "gray", "depth": "depth", "wofg_depth": "depth"}
DepthOrImage = Literal["rgb", "gray", "depth", "wofg_depth"]


class _Record(BaseModel):
    img_path: list[str] = Field(min_length=1)
    img_type: list[DepthOrImage]
    mask_path: str | None = None
    specie_name: str = ANOMALY
    anomaly: Literal[0, 1]


_INDEX = TypeAdapter(dict[Literal["train", "test"], dict[str, list[_Record]]])


class MMADIndexLayout:
    """Several datasets at once, each named as the benchmark it is."""

    info = LayoutInfo(
        name="mmad_index", title="MMAD index (the nine sets, one JSON file)", citation="UniMMAD, CVPR 2026"
    )

    def recognises(self, root: Path) -> bool:
        return root.is_file() and root.suffix.lower() == ".json"

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        sets: dict[str, ReadSet] = {}
        for split, classes in _load(root).items():
            for full_name, records in classes.items():
                class_name, dataset, field = _split_name(root, full_name)
                found = sets.setdefault(dataset, ReadSet([], dataset, field))
                for number, record in enumerate(records):
                    where = f"{root}: {split}, {full_name}, record {number}"
                    found.samples.append(_sample(root.parent, record, class_name, split, where))
        return [ReadSet(item.samples, item.name, item.field, _modalities(item.samples)) for item in sets.values()]


def _load(path: Path) -> dict[Literal["train", "test"], dict[str, list[_Record]]]:
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the index's .json file itself")
    try:
        return _INDEX.validate_json(read_limited(path, MAX_INDEX_BYTES))
    except ValidationError as error:
        raise ValueError(f"{path}: {first_problem(error)}; is it the released index?") from None


def _split_name(path: Path, full_name: str) -> tuple[str, str, str]:
    for suffix, (dataset, field) in DATASETS.items():
        if full_name.endswith(f"_{suffix}"):
            return full_name.removesuffix(f"_{suffix}"), dataset, field
    class_name, separator, dataset = full_name.rpartition("_")
    if not separator:
        raise ValueError(f"{path}: class {full_name} does not end in _DATASET, such as _{' or _'.join(DATASETS)}")
    return class_name, dataset, "unspecified"


def _sample(
    folder: Path, record: _Record, class_name: str, split: Literal["train", "test"], where: str
) -> SourceSample:
    if len(record.img_path) != len(record.img_type):
        raise ValueError(f"{where}: {len(record.img_path)} img_path, but {len(record.img_type)} img_type")
    paths = [inside(folder, path, where) for path in record.img_path]
    defect = GOOD if not record.anomaly else record.specie_name
    if record.anomaly and defect == GOOD:
        defect = ANOMALY
    mask = inside(folder, record.mask_path, where) if record.anomaly and record.mask_path else None
    files = {
        name: _source_file(path, kind, paths[0])
        for name, path, kind in zip(_modality_names(record.img_type), paths, record.img_type, strict=True)
    }
    return new_sample(class_name, split, defect, paths[0].stem, files, joined_mask([mask], paths[0]) if mask else None)


def inside(folder: Path, name: str, where: str) -> Path:
    """``folder / name``; ValueError, which ``where`` begins, where that leads out of ``folder`` or does not exist."""
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"{where}: path {name} leads out of {folder}")
    if not path.is_file():
        raise ValueError(f"{where}: {path} does not exist")
    return path


def _modality_names(types: list[DepthOrImage]) -> list[str]:
    """The kind, numbered from its second occurrence on: gray, gray2, gray3."""
    kinds = [KINDS[kind] for kind in types]
    numbers = [kinds[: place + 1].count(kind) for place, kind in enumerate(kinds)]
    return [kind if number == 1 else f"{kind}{number}" for kind, number in zip(kinds, numbers, strict=True)]


def _source_file(path: Path, kind: DepthOrImage, first: Path) -> SourceFile:
    file = SourceFile.of(path) if path == first else aligned_image(path, first)
    if kind != "wofg_depth":
        return file
    return SourceFile(name=file.name, suffix=".npy", read=partial(_first_channel, file))


def _first_channel(file: SourceFile) -> bytes:
    array = decode_image(file.read(), file.suffix, file.name)
    return npy_bytes(array[:, :, 0].astype(np.float32) if array.ndim == 3 else array)


def _modalities(samples: list[SourceSample]) -> tuple[Modality, ...]:
    places: dict[str, int] = {}
    for sample in samples:
        for place, name in enumerate(sample.images):
            places.setdefault(name, place)
    ordered = sorted(places, key=lambda name: (places[name], name))
    kinds = {name: next(kind for kind in KINDS.values() if name.startswith(kind)) for name in ordered}
    return tuple(Modality(name=name, slot=slot, kind=kinds[name]) for slot, name in enumerate(ordered))
