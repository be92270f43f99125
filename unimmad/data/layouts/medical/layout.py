"""One's own medical scans in folders: each slice is a sample, gray, upright, in a common window.

ROOT/windows.json                                   optional, see ``windows``
ROOT/CLASS/train/good/NAME.nii.gz                   a volume, or
ROOT/CLASS/train/good/NAME.dcm                      a slice, or
ROOT/CLASS/train/good/SERIES/NAME.dcm               the slices of a series; SERIES: one folder or several levels
ROOT/CLASS/calibration/good/...                     optional: normal scans of further patients
ROOT/CLASS/test/DEFECT/...                          DEFECT: good for normal scans
ROOT/CLASS/ground_truth/DEFECT/NAME.nii.gz          or NAME_mask.nii.gz: of a volume, on its grid
ROOT/CLASS/ground_truth/DEFECT/[SERIES/]NAME.png    or NAME_mask.png: of a DICOM slice, over the stored picture

Several modalities, on one grid, lie in a folder each between DEFECT and the files; a folder counts as a modality where
its name is one of gray images' (ct, mri, t1, flair, ...) or the user's, else as a series.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from unimmad.data.decode import IMAGE_SUFFIXES
from unimmad.data.index import Modality, Split
from unimmad.data.layouts.layout import LayoutInfo, ReadSet
from unimmad.data.layouts.medical.dicom import DicomSlice, find_slice, is_dicom, series_values
from unimmad.data.layouts.medical.found import (
    DamagedScan,
    Found,
    check_planes,
    note_patients,
    note_spacings,
    refusing,
)
from unimmad.data.layouts.medical.nifti import (
    check_one_grid,
    find_volume,
    is_nifti,
    marked_slices,
    stem,
)
from unimmad.data.layouts.medical.windows import common_limits, own_limits, read_windows
from unimmad.data.layouts.scan import GOOD, Notices, class_folders, is_normal, named, new_sample, visible_folders
from unimmad.data.layouts.source_set import SourceFile, SourceSample
from unimmad.data.modality import ModalityChoice, guess_kind

SPLIT_FOLDERS: tuple[Split, ...] = ("train", "calibration", "test")
MASKS = "ground_truth"
NAMES = {"CT": "ct", "MR": "mri"}
"""What a set's only modality is called, by DICOM's word for it."""
UNNAMED = "scan"
MAX_DEPTH = 6
"""Levels of folders that are looked into: patient, study, series and three more."""


Scan = Found | DamagedScan
Read = TypeVar("Read")


class _DamagedError(Exception):
    """A scan or its mask cannot be used; those beside it can."""


class MedicalLayout:
    """DICOM or NIfTI; modalities are called as their folders, an only one as DICOM calls it, or ``scan``."""

    info = LayoutInfo(name="medical", title="medical scans (DICOM, NIfTI)", field="medicine", by_file_type=True)

    def recognises(self, root: Path) -> bool:
        return any(
            _has_scans(part)
            for folder in visible_folders(root)
            for part in visible_folders(named(folder, "train"))
            if is_normal(part)
        )

    def read(self, root: Path, choices: dict[str, ModalityChoice], notices: Notices) -> list[ReadSet]:
        scans = [scan for folder in class_folders(root, notices) for scan in _read_class(folder, choices, notices)]
        if not scans:
            raise ValueError(f"{root} has no DICOM or NIfTI file in train/good")
        damaged = [scan for scan in scans if isinstance(scan, DamagedScan)]
        found = _named(root, [scan for scan in scans if isinstance(scan, Found)], choices)
        if not found:
            raise ValueError(damaged[0].problem)
        names = dict.fromkeys(name for sample in found for name in sample.slices)
        check_planes(found)
        note_spacings(found, notices)
        note_patients(found, notices)
        images = {name: _images(root, name, found, notices) for name in names}
        modalities = tuple(Modality(name=name, slot=slot, kind="gray") for slot, name in enumerate(sorted(names)))
        samples = [_sample(item, images) for item in found] + [_damaged_sample(scan, names) for scan in damaged]
        return [ReadSet(samples, modalities=modalities)]


def _folders(folder: Path, depth: int = MAX_DEPTH) -> Iterator[Path]:
    """``folder`` and those in it, but for ``depth`` levels below."""
    if folder.is_dir():
        yield folder
        for inner in visible_folders(folder) if depth else ():
            yield from _folders(inner, depth - 1)


def _has_scans(folder: Path) -> bool:
    return any(is_nifti(path) or is_dicom(path) for inner in _folders(folder) for path in inner.iterdir())


def _read_class(class_folder: Path, choices: Mapping[str, ModalityChoice], notices: Notices) -> Iterator[Scan]:
    for split in SPLIT_FOLDERS:
        for folder in visible_folders(named(class_folder, split)):
            if is_normal(folder) and folder.name != GOOD:
                notices.add(f"{folder}: taken as {GOOD}, the normal scans")
            if split != "test" and not is_normal(folder):
                notices.add(f"{folder}: left out, only {split}/{GOOD} is read")
            else:
                yield from _read_defect(class_folder, split, folder, choices, notices)


def _read_defect(
    class_folder: Path, split: Split, folder: Path, choices: Mapping[str, ModalityChoice], notices: Notices
) -> Iterator[Scan]:
    inside = {inner.name: inner for inner in visible_folders(folder) if _is_modality(inner.name, choices)}
    by_modality = {name: _files(path, notices) for name, path in (inside or {"": folder}).items()}
    masks = named(class_folder, MASKS) / folder.name
    anomalous, defect = not is_normal(folder), GOOD if is_normal(folder) else folder.name
    for name in dict.fromkeys(name for files in by_modality.values() for name in files):
        paths = {modality: files[name] for modality, files in by_modality.items() if name in files}
        of_volumes = [is_nifti(path) for path in paths.values()]
        if any(of_volumes) and not all(of_volumes):
            raise ValueError(f"{folder / name}: DICOM in one modality, NIfTI in another; convert one of them")
        make = partial(Found, class_folder.name, split, defect)
        samples = _volume_samples if all(of_volumes) else _slice_sample
        try:
            yield from samples(make, folder, name, paths, masks if anomalous else None, notices)
        except _DamagedError as error:
            yield DamagedScan(class_folder.name, split, defect, name, paths, str(error))


def _is_modality(name: str, choices: Mapping[str, ModalityChoice]) -> bool:
    return name in choices or guess_kind(name) == "gray"


def _files(folder: Path, notices: Notices) -> dict[str, Path]:
    """Scans by their path in ``folder``, without suffix; what else lies there is said."""
    files: dict[str, Path] = {}
    for inner in _folders(folder):
        others = 0
        paths = sorted(inner.iterdir())
        if inner != folder and (volumes := [path for path in paths if is_nifti(path)])[1:]:
            raise ValueError(
                f"{inner} holds {len(volumes)} volumes; if they are modalities, put each into a folder of the "
                f"modality's name, such as {folder / 't1' / inner.name}.nii.gz"
            )
        for path in paths:
            if not (is_nifti(path) or is_dicom(path)):
                others += path.is_file() and not path.name.startswith(".")
                continue
            name = str((inner / (stem(path) if is_nifti(path) else path.stem)).relative_to(folder))
            if name in files:
                raise ValueError(f"{path} and {files[name].name} name one scan twice; remove one of them")
            files[name] = path
        if others:
            notices.add(f"{inner}: {others} files left out; read are DICOM and NIfTI")
    return files


def _volume_samples(
    make: partial[Found],
    folder: Path,
    name: str,
    paths: Mapping[str, Path],
    masks: Path | None,
    notices: Notices,
) -> Iterator[Found]:
    volumes = {modality: _sound(find_volume, path) for modality, path in paths.items()}
    first, *others = volumes.values()
    for other in others:
        check_one_grid(first, other)
    mask = _mask(masks, name, (".nii.gz", ".nii")) if masks else None
    if masks and mask is None:
        raise ValueError(
            f"{first.path} has no mask {name}.nii.gz in {masks}: which of its slices are anomalous is not known; add it"
        )
    marked = _sound(marked_slices, first, mask) if mask else set[int]()
    if mask and not marked:
        raise ValueError(f"{mask} marks nothing, but {first.path} is in {folder.name}; move the volume to {GOOD}")
    if mask and len(marked) < len(list(first.slices())):
        notices.add(f"{folder}: slices in which the mask marks nothing count as normal ones")
    for slices in zip(*(volume.slices() for volume in volumes.values()), strict=True):
        number = slices[0].number
        found = dict(zip(volumes, slices, strict=True))
        label = f"{name}/{number:04d}"
        if mask and number in marked:
            yield make(label, found, slices[0].mask(mask))
        else:
            yield replace(make(label, found, None), defect=GOOD)


def _slice_sample(
    make: partial[Found], folder: Path, name: str, paths: Mapping[str, Path], masks: Path | None, notices: Notices
) -> Iterator[Found]:
    slices = {modality: _sound(find_slice, path) for modality, path in paths.items()}
    first = next(iter(slices.values()))
    mask = _mask(masks, name, tuple(sorted(IMAGE_SUFFIXES))) if masks else None
    if masks and mask is None:
        if volume := _mask(masks, str(Path(name).parent), (".nii.gz", ".nii")):
            raise ValueError(
                f"{volume}: masks of DICOM are PNG files, one a slice; or convert the series to NIfTI, too"
            )
        if masks.is_dir():
            raise ValueError(f"{first.path} has no mask {name}.png or {name}_mask.png in {masks}; add it")
        notices.add(f"{folder}: no {MASKS} folder; its samples are written without a mask")
    yield make(name, slices, first.mask(mask) if mask else None)


def _sound(read: Callable[..., Read], *arguments: object) -> Read:
    """What ``read`` gives.

    Raises:
        _DamagedError: it refuses the file.
    """
    try:
        return read(*arguments)
    except ValueError as error:
        raise _DamagedError(str(error)) from None
    except OSError as error:
        raise _DamagedError(f"{arguments[-1]}: cannot be read ({error.strerror or error})") from None


def _mask(folder: Path, name: str, suffixes: Iterable[str]) -> Path | None:
    candidates = (folder / f"{name}{ending}{suffix}" for suffix in suffixes for ending in ("_mask", ""))
    return next((path for path in candidates if path.is_file()), None)


def _named(root: Path, found: Sequence[Found], choices: Mapping[str, ModalityChoice]) -> list[Found]:
    """The samples with a name for an only modality: the user's, else by what the files are."""
    unnamed = [sample for sample in found if "" in sample.slices]
    if not unnamed:
        return list(found)
    if len(unnamed) < len(found):
        other = next(sample for sample in found if "" not in sample.slices)
        raise ValueError(
            f"{next(iter(unnamed[0].slices.values())).path} lies right in its folder, "
            f"{next(iter(other.slices.values())).path} in one of a modality; use one way for all"
        )
    if len(choices) > 1:
        raise ValueError(f"{root} has one modality, but --modality names {len(choices)}: {', '.join(choices)}")
    kinds = {sample.slices[""].kind for sample in unnamed}
    name = next(iter(choices), None) or (NAMES.get(min(kinds), min(kinds).lower()) if len(kinds) == 1 else "")
    return [Found(s.class_name, s.split, s.defect, s.name, {name or UNNAMED: s.slices[""]}, s.mask) for s in unnamed]


def _images(root: Path, name: str, found: Sequence[Found], notices: Notices) -> dict[int, SourceFile]:
    """The files of one modality, by the ``id`` of their slice."""
    slices = [sample.slices[name] for sample in found if name in sample.slices]
    limits = common_limits(root, name, slices, read_windows(root), notices)
    if limits is not None:
        return {id(item): item.image(limits) for item in slices}
    series: dict[str, list[DicomSlice]] = {}
    for item in slices:
        if isinstance(item, DicomSlice):
            series.setdefault(item.series, []).append(item)
    own: dict[str, tuple[float, float]] = {}
    damaged: dict[int, SourceFile] = {}
    for key, items in series.items():
        try:
            values = series_values(items)
        except ValueError as error:
            damaged |= {id(item): refusing(item.path, str(error)) for item in items}
        else:
            own[key] = own_limits(values, str(items[0].path))
    return damaged | {id(item): item.image(own.get(item.series)) for item in slices if id(item) not in damaged}


def _sample(found: Found, images: Mapping[str, Mapping[int, SourceFile]]) -> SourceSample:
    files = {name: images[name][id(item)] for name, item in found.slices.items()}
    return new_sample(found.class_name, found.split, found.defect, found.name, files, found.mask)


def _damaged_sample(scan: DamagedScan, names: Collection[str]) -> SourceSample:
    """A sample that cannot be read; ``names`` are the modalities of the others.

    Raises:
        ValueError: it is of a modality that they lack.
    """
    images = {name or next(iter(names)): file for name, file in scan.images().items()}
    if not images.keys() <= set(names):
        raise ValueError(scan.problem)
    return new_sample(scan.class_name, scan.split, scan.defect, scan.name, images, None)
