"""One's own images, listed in a table: a CSV file with a header, or JSON lines with the same names.

column          what is in it
class           the class's name
split           train, test or calibration
image           the image's path; for several modalities a column image.NAME for each instead
defect          the defect's name; empty or good: normal
mask            the mask's path; empty: none
name            what to call the sample; empty: as its first image's file

class, split and image are needed, the others not. Paths are relative to the table, or absolute; how many files lie
outside of the table's folder is said, since whoever gets the shards gets them, too.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import get_args

from unimmad.data.index import Split
from unimmad.data.layouts.layout import OWN_CALIBRATION_FRACTION, LayoutInfo, ReadSet
from unimmad.data.layouts.own.mvtec import single_modality
from unimmad.data.layouts.own.rows import Row, existing, read_rows
from unimmad.data.layouts.scan import GOOD, NORMAL_NAMES, Notices, new_sample
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice

SUFFIXES = (".csv", ".jsonl")
REQUIRED = ("class", "split")
OPTIONAL = ("defect", "mask", "name")
IMAGE = "image"
PREFIX = "image."


class ManifestLayout:
    """Modalities as the columns name them; a single ``image`` is called as in the MVTec-AD layout."""

    info = LayoutInfo(
        name="manifest", title="manifest (CSV or JSON lines)", calibration_fraction=OWN_CALIBRATION_FRACTION
    )

    def recognises(self, root: Path) -> bool:
        return root.is_file() and root.suffix.lower() in SUFFIXES

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        if not self.recognises(root):
            raise ValueError(f"{root} is not a manifest; give a file that ends in {' or '.join(SUFFIXES)}")
        rows = read_rows(root, REQUIRED)
        columns = _image_columns(root, rows)
        if columns == [IMAGE]:
            files = (SourceFile.of(_path(root, row, IMAGE)) for row in rows)
            names = {IMAGE: single_modality(files, choices, root)}
        else:
            names = {column: column.removeprefix(PREFIX) for column in columns}
        samples = [_sample(root, row, names) for row in rows]
        _note_outside(root, samples, notices)
        return [ReadSet(samples)]


def _image_columns(path: Path, rows: Sequence[Row]) -> list[str]:
    """Columns that hold images, in the order they come up.

    Raises:
        ValueError: none, ``image`` beside ``image.NAME``, or a column of no meaning.
    """
    seen = list(dict.fromkeys(column for row in rows for column in row.cells))
    columns = [column for column in seen if column == IMAGE or (column.startswith(PREFIX) and column != PREFIX)]
    for column in seen:
        if column not in (*REQUIRED, *OPTIONAL, *columns):
            near = get_close_matches(column.lower(), (*REQUIRED, IMAGE, *OPTIONAL), n=1)
            known = ", ".join((*REQUIRED, IMAGE, f"{PREFIX}NAME", *OPTIONAL))
            raise ValueError(
                f"{path}: column {column} is unknown{f'; {near[0]}?' if near else '.'} Columns are {known}"
            )
    if not columns:
        raise ValueError(f"{path}: has no column {IMAGE} or {PREFIX}NAME with a path in it")
    if IMAGE in columns and len(columns) > 1:
        raise ValueError(f"{path}: {IMAGE} stands beside {columns[1]}; call it {PREFIX}NAME, too")
    return columns


def _sample(table: Path, row: Row, modalities: dict[str, str]) -> SourceSample:
    split = _split(row)
    defect = row.cells.get("defect", GOOD)
    if defect.lower() in NORMAL_NAMES:
        defect = GOOD
    if defect != GOOD and split != "test":
        raise ValueError(f"{row.where}: defect {defect} in the split {split}; only test may hold defects")
    images = {
        name: SourceFile.of(_path(table, row, column)) for column, name in modalities.items() if column in row.cells
    }
    if not images:
        raise ValueError(f"{row.where}: {' and '.join(modalities)} is empty; fill it in")
    stem = row.cells.get("name") or Path(next(iter(images.values())).name).stem
    mask = SourceFile.of(_path(table, row, "mask")) if "mask" in row.cells else None
    return new_sample(row.cells["class"], split, defect, stem, images, mask)


def _note_outside(table: Path, samples: Sequence[SourceSample], notices: Notices) -> None:
    folder = os.path.join(os.path.abspath(table.parent), "")
    files = (file for sample in samples for file in (*sample.images.values(), *([sample.mask] if sample.mask else [])))
    outside = [file.name for file in files if not os.path.abspath(file.name).startswith(folder)]
    if outside:
        notices.add(f"{table}: {len(outside)} of its files lie outside of {table.parent}, such as {outside[0]}")


def _split(row: Row) -> Split:
    for split in get_args(Split):
        if row.cells["split"] == split:
            return split
    raise ValueError(f"{row.where}: split {row.cells['split']!r}; wanted {', '.join(get_args(Split))}")


def _path(table: Path, row: Row, column: str) -> Path:
    return existing(table.parent / row.need(column), row)
