"""The images of a class that is to be added: from shards, from a folder or table in a layout, or plain files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimmad.data.decode import decode_image
from unimmad.data.index import GOOD, INDEX_NAME, DatasetEntry
from unimmad.data.layouts import LAYOUTS, find_sets
from unimmad.data.layouts.scan import Notices
from unimmad.data.layouts.source_set import SourceFile
from unimmad.data.reading.shard_files import SampleRef
from unimmad.data.reading.shard_set import ShardSet
from unimmad.inference.catalogue import Catalogue
from unimmad.inference.inputs import InputSample, find_samples
from unimmad.serialization.text import listed

ADDED = "added"
"""Dataset of classes that are given without one."""
TABLES = frozenset({".csv", ".jsonl"})


@dataclass(frozen=True)
class NewClass:
    """A class to be added, and its normal images."""

    name: str
    """``DATASET/CLASS``."""
    dataset: DatasetEntry
    """Its modalities, in the model's slots."""
    samples: tuple[InputSample, ...]
    dataset_told: bool = True
    """Whether its dataset was told, by the user, shards or a layout; else it is ``ADDED``."""


def new_classes(
    paths: Sequence[Path], class_name: str | None, catalogue: Catalogue, notices: Notices
) -> list[NewClass]:
    """The classes in ``paths``, by their normal training images.

    Args:
        paths: shard folders, or folders and tables in a layout of ``unimmad shards``, or image files and folders.
        class_name: ``CLASS`` or ``DATASET/CLASS``: the one meant, or what plain images are of.
        catalogue: what the model knows.
        notices: takes what the user should know.

    Raises:
        ValueError: no image, no such class, or modalities that the model doesn't know.
    """
    found: dict[str, NewClass] = {}
    plain = [path for path in paths if not (_is_shards(path) or _in_a_layout(path))]
    if plain and class_name is None:
        raise ValueError(f"{plain[0]} says no class: name it with --class NAME")
    for path in paths:
        if path not in plain:
            of_path = _of_shards(path, catalogue) if _is_shards(path) else _of_layout(path, catalogue, notices)
            found |= {one.name: one for one in of_path}
    if plain and class_name is not None:
        samples = find_samples(plain, catalogue.modality_names, notices)
        name = class_name if "/" in class_name else f"{ADDED}/{class_name}"
        found[name] = NewClass(name, _known_as(name, samples, catalogue), tuple(samples), "/" in class_name)
    wanted = [one for name, one in found.items() if class_name in (None, name, name.partition("/")[2])]
    if not wanted:
        there = listed(sorted(found), 5) or "none with normal training images"
        raise ValueError(f"no class {class_name} in {', '.join(map(str, paths))}; there is {there}")
    return wanted


def _is_shards(path: Path) -> bool:
    return (path / INDEX_NAME).is_file()


def _in_a_layout(path: Path) -> bool:
    if path.is_file():
        return path.suffix.lower() in TABLES
    return path.is_dir() and any(layout.recognises(path) for layout in LAYOUTS.values())


def _of_shards(folder: Path, catalogue: Catalogue) -> list[NewClass]:
    shards = ShardSet.open([folder], None, catalogue.datasets)
    return [
        NewClass(
            name,
            _checked(name, shards.datasets[name.partition("/")[0]], catalogue),
            tuple(InputSample(ref.entry.key, _members(shards, ref)) for ref in refs),
        )
        for name, refs in shards.classes("train").items()
    ]


def _members(shards: ShardSet, ref: SampleRef) -> dict[str, np.ndarray]:
    images = {}
    for modality, member in ref.entry.images.items():
        suffix = Path(member.name).suffix
        images[modality] = decode_image(shards.member_bytes(ref, member), suffix, f"{ref.entry.key}: {member.name}")
    return images


def _of_layout(path: Path, catalogue: Catalogue, notices: Notices) -> list[NewClass]:
    classes: dict[str, list[InputSample]] = {}
    for found in find_sets(path, calibration_fraction=0.0):
        for notice in found.notices:
            notices.add(notice)
        for sample in found.source.samples:
            if sample.split == "train" and sample.defect == GOOD:
                images = {name: _pixels(file) for name, file in sample.images.items()}
                name = f"{found.source.name}/{sample.class_name}"
                classes.setdefault(name, []).append(InputSample(sample.key, images))
    return [NewClass(name, _known_as(name, samples, catalogue), tuple(samples)) for name, samples in classes.items()]


def _pixels(file: SourceFile) -> np.ndarray:
    return decode_image(file.read(), file.suffix, file.name)


def _known_as(name: str, samples: Sequence[InputSample], catalogue: Catalogue) -> DatasetEntry:
    """The modalities by which the model reads these images."""
    matches = [
        catalogue.match(list(sample.images) if isinstance(sample.images, Mapping) else None, name) for sample in samples
    ]
    modalities = {modality.name: modality for match in matches for modality in match.modalities}
    ordered = tuple(sorted(modalities.values(), key=lambda modality: modality.slot))
    return catalogue.datasets.get(name.partition("/")[0]) or DatasetEntry(field="unspecified", modalities=ordered)


def _checked(name: str, entry: DatasetEntry, catalogue: Catalogue) -> DatasetEntry:
    """
    Raises:
        ValueError: a modality is none that the model knows, or of another kind.
    """
    kinds = {one.name: one.kind for known in catalogue.datasets.values() for one in known.modalities}
    for modality in entry.modalities:
        if modality.name not in kinds:
            raise ValueError(
                f"class {name} has the modality {modality.name}, which the model does not know (it knows "
                f"{', '.join(kinds)}): name it as the one that it is, or train with it"
            )
        if kinds[modality.name] != modality.kind:
            raise ValueError(
                f"class {name}: {modality.name} is {modality.kind}, and the model was trained with {modality.name} as "
                f"{kinds[modality.name]}; give it another name, or train with it"
            )
    return entry
