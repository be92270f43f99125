"""From a folder to a data set: which layout, which classes, which modalities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimmad.data.decode import decode_image
from unimmad.data.index import DatasetEntry, Modality, ModalityKind
from unimmad.data.layouts.multimodal import MultimodalLayout
from unimmad.data.layouts.mvtec import MVTecLayout
from unimmad.data.layouts.scan import Layout, Notices, unique_keys, visible_folders
from unimmad.data.modality import (
    MAX_MODALITIES,
    ModalityChoice,
    assign_slots,
    guess_kind,
    resolve_modality,
)
from unimmad.data.source import SourceFile, SourceSample, SourceSet

LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (MVTecLayout(), MultimodalLayout())}
"""By the name that ``--layout`` takes."""


@dataclass(frozen=True)
class FoundSet:
    """A data set and what the user should know about it."""

    source: SourceSet
    notices: tuple[str, ...]


def find_set(
    root: Path,
    *,
    name: str | None = None,
    field: str = "unspecified",
    layout: str = "auto",
    modalities: Sequence[ModalityChoice] = (),
    max_modalities: int = MAX_MODALITIES,
) -> FoundSet:
    """Read the data set in ``root``; images are opened only to see their number type and channels.

    Args:
        root: the folder that holds one folder a class; other things beside them are left out.
        name: the data set's name; the folder's by default.
        field: industry, medicine, ...
        layout: a name in ``LAYOUTS``, or ``auto``.
        modalities: what the user said of modalities; the others are judged by their names.
        max_modalities: more are refused.

    Raises:
        ValueError: no such folder, no class in it, a layout that is not recognised, a modality that is not
            there, or files that contradict the layout.
    """
    choices = _choices_by_name(modalities)
    notices = Notices()
    classes = _class_folders(root, notices)
    chosen = _choose_layout(root, classes, layout)
    samples: list[SourceSample] = []
    for class_folder in classes:
        read = chosen.read_class(class_folder, choices, notices)
        if not any(sample.split == "train" for sample in read):
            raise ValueError(f"class {class_folder} has no image in train/good; add some or move the class away")
        samples += read
    set_name = name or root.resolve().name
    source = SourceSet(
        name=set_name,
        description=f"{chosen.description}, folder {root.resolve().name}",
        entry=DatasetEntry(field=field, modalities=_modalities(root, samples, choices, max_modalities, notices)),
        samples=tuple(unique_keys(samples)),
    )
    return FoundSet(source, tuple(notices.lines))


def _choices_by_name(modalities: Sequence[ModalityChoice]) -> dict[str, ModalityChoice]:
    choices: dict[str, ModalityChoice] = {}
    for choice in modalities:
        if choice.name in choices:
            raise ValueError(f"--modality {choice.name} is given twice")
        choices[choice.name] = choice
    return choices


def _class_folders(root: Path, notices: Notices) -> list[Path]:
    if not root.is_dir():
        raise ValueError(f"source folder {root} does not exist")
    if (root / "train").is_dir():
        raise ValueError(f"{root} looks like one class, not like a folder of classes; give {root.resolve().parent}")
    classes = []
    for folder in visible_folders(root):
        if (folder / "train").is_dir() or (folder / "test").is_dir():
            classes.append(folder)
        else:
            notices.add(f"{folder}: left out, it has neither train nor test")
    if not classes:
        raise ValueError(f"{root} has no class folder; wanted {root / 'CLASS' / 'train' / 'good'}")
    return classes


def _choose_layout(root: Path, classes: Sequence[Path], layout: str) -> Layout:
    if layout != "auto":
        if layout not in LAYOUTS:
            raise ValueError(f"--layout {layout} is unknown; choose auto or {' or '.join(LAYOUTS)}")
        return LAYOUTS[layout]
    recognised: dict[str, Path] = {}
    for folder in classes:
        for candidate in LAYOUTS.values():
            if candidate.recognises(folder):
                recognised.setdefault(candidate.name, folder)
    if not recognised:
        raise ValueError(
            f"class {classes[0]} has no image in train/good, neither directly nor in a folder a modality; "
            "add some or move the class away"
        )
    if len(recognised) > 1:
        found = " and ".join(f"{path.name} ({name})" for name, path in recognised.items())
        raise ValueError(f"{root} mixes layouts: {found}; split it, or say --layout {'|'.join(LAYOUTS)}")
    return LAYOUTS[next(iter(recognised))]


def _modalities(
    root: Path,
    samples: Sequence[SourceSample],
    choices: dict[str, ModalityChoice],
    limit: int,
    notices: Notices,
) -> tuple[Modality, ...]:
    first: dict[str, SourceFile] = {}
    for sample in samples:
        for name, file in sample.images.items():
            first.setdefault(name, file)
    used = {name: choice for name, choice in choices.items() if choice.kind != "skip"}
    if unknown := set(used) - set(first):
        raise ValueError(f"--modality {min(unknown)}: {root} has only {', '.join(sorted(first))}")
    if len(first) > limit:
        raise ValueError(
            f"{root} has {len(first)} modalities ({', '.join(sorted(first))}); the model takes {limit}; "
            "leave some out by --modality NAME=skip"
        )
    entries = []
    for name, file in first.items():
        kind = _kind(name, choices.get(name), notices)
        dtype = decode_image(file.read(), file.suffix, file.name).dtype if kind == "depth" else np.dtype(np.uint8)
        entries.append(resolve_modality(name, kind, choices.get(name), dtype))
    return assign_slots(entries, tuple(used.values()))


def _kind(name: str, choice: ModalityChoice | None, notices: Notices) -> ModalityKind:
    if choice is not None and choice.kind != "skip":
        return choice.kind
    guessed = guess_kind(name)
    if guessed is None:
        notices.add(f"modality {name}: an unknown name, taken as gray; --modality {name}=rgb|gray|depth overrides")
    return guessed or "gray"
