"""From a folder or a file to datasets: which layout, which classes, which modalities."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from unimmad.data.decode import decode_image
from unimmad.data.index import DatasetEntry, Modality, ModalityKind
from unimmad.data.layouts.calibration import not_set_aside, set_aside
from unimmad.data.layouts.layout import Layout, LayoutInfo, ReadSet
from unimmad.data.layouts.registry import LAYOUTS
from unimmad.data.layouts.scan import (
    Notices,
    class_folders,
    did_you_mean,
    holds_images,
    no_training_image,
    normal_folders,
    unique_keys,
    visible_folders,
)
from unimmad.data.layouts.source_set import SourceFile, SourceSample, SourceSet
from unimmad.data.modality import (
    MAX_MODALITIES,
    ModalityChoice,
    assign_slots,
    bare_number_note,
    guess_kind,
    resolve_modality,
)
from unimmad.data.roi import rois_beside
from unimmad.serialization.text import listed


@dataclass(frozen=True)
class FoundSet:
    """A dataset and what the user should know about it."""

    source: SourceSet
    notices: tuple[str, ...]


@dataclass(frozen=True)
class _Wishes:
    """What the user said."""

    name: str | None
    field: str | None
    choices: dict[str, ModalityChoice]
    max_modalities: int
    calibration_fraction: float | None
    seed: int


def find_set(
    root: Path,
    *,
    name: str | None = None,
    field: str | None = None,
    layout: str = "auto",
    modalities: Sequence[ModalityChoice] = (),
    max_modalities: int = MAX_MODALITIES,
    calibration_fraction: float | None = 0.0,
    seed: int = 0,
) -> FoundSet:
    """:func:`find_sets` where there is one; nothing is set aside for calibration unless asked for.

    Raises:
        ValueError: as ``find_sets``, or there are several.
    """
    found = find_sets(
        root,
        name=name,
        field=field,
        layout=layout,
        modalities=modalities,
        max_modalities=max_modalities,
        calibration_fraction=calibration_fraction,
        seed=seed,
    )
    if len(found) > 1:
        raise ValueError(f"{root} holds {len(found)} datasets: {', '.join(item.source.name for item in found)}")
    return found[0]


def find_sets(
    root: Path,
    *,
    name: str | None = None,
    field: str | None = None,
    layout: str = "auto",
    modalities: Sequence[ModalityChoice] = (),
    max_modalities: int = MAX_MODALITIES,
    calibration_fraction: float | None = None,
    seed: int = 0,
) -> list[FoundSet]:
    """Read the datasets in ``root``: one, or several where an index of many lists them.

    Images are opened only to see their number type and channels, and some masks to see whether they are empty.

    Args:
        root: the dataset's folder, or the file that lists it.
        name: the dataset's name; by default the benchmark's, else the folder's.
        field: industry, medicine, ...; the layout's by default.
        layout: a name in ``LAYOUTS``, or ``auto``.
        modalities: what the user said of modalities; the others are as the layout declares, or judged by their names.
        max_modalities: more are refused.
        calibration_fraction: see ``calibration.set_aside``; None: the layout's own.
        seed: of the calibration samples' choice.

    Raises:
        ValueError: no such folder, no class in it, a layout that is not recognised, a modality that is not
            there, a class that the benchmark does not have, or files that contradict the layout.
    """
    notices = Notices()
    chosen = _choose_layout(root, layout, notices)
    wishes = _Wishes(name, field, _choices_by_name(modalities), max_modalities, calibration_fraction, seed)
    read = chosen.read(root, wishes.choices, notices)
    if len(read) > 1 and name:
        raise ValueError(f"{root} holds {len(read)} datasets, which --name cannot name; leave it out")
    sources = [_source_set(root, chosen.info, item, wishes, notices) for item in read]
    return [FoundSet(source, tuple(notices.lines) if source is sources[0] else ()) for source in sources]


def _choices_by_name(modalities: Sequence[ModalityChoice]) -> dict[str, ModalityChoice]:
    choices: dict[str, ModalityChoice] = {}
    for choice in modalities:
        if choice.name in choices:
            raise ValueError(f"--modality {choice.name} is given twice")
        choices[choice.name] = choice
    return choices


def _choose_layout(root: Path, layout: str, notices: Notices) -> Layout:
    if layout != "auto":
        if layout not in LAYOUTS:
            raise ValueError(f"--layout {layout} is unknown; choose auto or {' or '.join(LAYOUTS)}")
        return LAYOUTS[layout]
    recognised = [candidate for candidate in LAYOUTS.values() if candidate.recognises(root)]
    recognised = [item for item in recognised if item.info.classes or item.info.by_file_type] or recognised
    if not recognised:
        below = [folder for folder in visible_folders(root) if any(one.recognises(folder) for one in LAYOUTS.values())]
        if below:
            raise ValueError(f"{root} is not a dataset, but holds {len(below)}; {did_you_mean(below)}")
        raise no_training_image(class_folders(root, notices)[0])
    if len(recognised) > 1:
        raise _mixture(root, [candidate.info.name for candidate in recognised])
    if recognised[0].info.classes:
        notices.add(f"{root}: read as {recognised[0].info.title}; if that is wrong, say --layout")
    return recognised[0]


def _mixture(root: Path, names: Sequence[str]) -> ValueError:
    """What to say where several layouts are recognised: which folders lie among images."""
    normal = [folder for of_class in visible_folders(root) for folder in normal_folders(of_class)]
    stray = [inner for folder in normal if holds_images(folder) for inner in visible_folders(folder)]
    where = f", since {listed([str(folder) for folder in stray], 3)} lies beside images; move it away" if stray else ""
    return ValueError(
        f"{root} mixes layouts: {' and '.join(names)}{where or '; split it'}, or say --layout {'|'.join(names)}"
    )


def _source_set(root: Path, info: LayoutInfo, read: ReadSet, wishes: _Wishes, notices: Notices) -> SourceSet:
    samples = unique_keys(_without_skipped(read.samples, wishes.choices))
    _check_twice(samples)
    _check_classes(root, info, samples, notices)
    share = info.calibration_fraction if wishes.calibration_fraction is None else wishes.calibration_fraction
    declared = read.modalities or info.modalities
    aside = set_aside(samples, share, wishes.seed)
    if share and (note := not_set_aside(aside)):
        notices.add(f"{root}: {note}")
    return SourceSet(
        name=wishes.name or read.name or (info.name if info.classes else _stem(root)),
        description=f"{info.title}, {root.resolve().name}",
        entry=DatasetEntry(
            field=wishes.field or read.field or info.field,
            modalities=_modalities(root, samples, declared, wishes, notices),
            roi=rois_beside(root if root.is_dir() else root.parent, sorted({one.class_name for one in samples})),
        ),
        samples=tuple(aside),
        root=root.parent if root.is_file() else root,
        published=bool(info.classes or read.name),
        invalid_told=frozenset(name for name, choice in wishes.choices.items() if choice.invalid_given),
    )


def _stem(root: Path) -> str:
    return root.stem if root.is_file() else root.resolve().name


def _without_skipped(samples: Sequence[SourceSample], choices: dict[str, ModalityChoice]) -> list[SourceSample]:
    skipped = {choice.name for choice in choices.values() if choice.kind == "skip"}
    if not skipped:
        return list(samples)
    kept = [{name: file for name, file in sample.images.items() if name not in skipped} for sample in samples]
    return [replace(sample, images=images) for sample, images in zip(samples, kept, strict=True) if images]


def _check_twice(samples: Sequence[SourceSample]) -> None:
    """Images that are two samples of a class would count twice, or be trained on and tested with."""
    seen: dict[tuple[str, ...], SourceSample] = {}
    for sample in samples:
        names = [" ".join((os.path.abspath(file.name), file.part)).rstrip() for file in sample.images.values()]
        first = seen.setdefault((sample.class_name, *names), sample)
        if first is not sample:
            raise ValueError(
                f"{names[0]} is two samples of class {sample.class_name} ({first.split} {first.defect} and "
                f"{sample.split} {sample.defect}); list it once"
            )


def _check_classes(root: Path, info: LayoutInfo, samples: Sequence[SourceSample], notices: Notices) -> None:
    trained = {sample.class_name for sample in samples if sample.split == "train"}
    found = {sample.class_name for sample in samples}
    if not found:
        raise ValueError(f"{root} has no image (or --modality NAME=skip leaves none)")
    if untrained := sorted(found - trained):
        raise no_training_image(root / untrained[0])
    if not info.classes:
        return
    if unknown := sorted(found - set(info.classes)):
        raise ValueError(
            f"{root}: {unknown[0]} is not a class of {info.title}, which has {', '.join(info.classes)}; "
            "say --layout mvtec or multimodal if these are your own images"
        )
    if missing := sorted(set(info.classes) - found):
        notices.add(f"{root}: {len(missing)} of {len(info.classes)} classes are not there: {', '.join(missing)}")


def _modalities(
    root: Path, samples: Sequence[SourceSample], declared: Sequence[Modality], wishes: _Wishes, notices: Notices
) -> tuple[Modality, ...]:
    files: dict[str, list[SourceFile]] = {}
    for sample in samples:
        for name, file in sample.images.items():
            files.setdefault(name, []).append(file)
    used = {name: choice for name, choice in wishes.choices.items() if choice.kind != "skip"}
    if unknown := set(used) - set(files):
        raise ValueError(f"--modality {min(unknown)}: {root} has only {listed(sorted(files))}")
    names = {name.lower(): name for name in files}
    if odd := [name for name in files if names[name.lower()] != name]:
        raise ValueError(
            f"{root} has a modality {odd[0]} and another {names[odd[0].lower()]}; call them alike, or leave one out by "
            f"--modality {odd[0]}=skip"
        )
    if len(files) > wishes.max_modalities:
        raise ValueError(
            f"{root} has {len(files)} modalities ({listed(sorted(files))}); the model takes "
            f"{wishes.max_modalities}; leave some out by --modality NAME=skip"
        )
    by_name = {modality.name: modality for modality in declared if modality.name in files}
    entries = [
        by_name[name] if name in by_name and name not in used else _judge(name, of_name, used.get(name), notices)
        for name, of_name in files.items()
    ]
    return assign_slots(entries, [modality.name for modality in declared])


def _judge(name: str, files: Sequence[SourceFile], choice: ModalityChoice | None, notices: Notices) -> Modality:
    kind = _kind(name, choice, notices)
    dtype = _first_dtype(files) if kind == "depth" else np.dtype(np.uint8)
    if note := bare_number_note(choice, dtype):
        notices.add(note)
    return resolve_modality(name, kind, choice, dtype)


def _first_dtype(files: Sequence[SourceFile]) -> np.dtype:
    """Of the first file that can be read; of the others whoever reads all of them has to say what is wrong.

    Raises:
        ValueError: there is none.
    """
    problem: Exception | None = None
    for file in files:
        try:
            return decode_image(file.read(), file.suffix, file.name).dtype
        except (ValueError, OSError) as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _kind(name: str, choice: ModalityChoice | None, notices: Notices) -> ModalityKind:
    if choice is not None and choice.kind != "skip":
        return choice.kind
    guessed = guess_kind(name)
    if guessed is None:
        notices.add(f"modality {name}: an unknown name, taken as gray; --modality {name}=rgb|gray|depth overrides")
    return guessed or "gray"
