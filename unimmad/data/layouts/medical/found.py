"""Samples of scans as they are found, before their windows are known, and what is to be said of all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from unimmad.data.index import Split
from unimmad.data.layouts.medical.dicom import DicomSlice
from unimmad.data.layouts.medical.nifti import VolumeSlice
from unimmad.data.layouts.scan import Notices
from unimmad.data.layouts.source_set import SourceFile

SPACING_RATIO = 1.1
"""Spacings that differ more are said."""

AnySlice = DicomSlice | VolumeSlice


@dataclass(frozen=True)
class Found:
    """One sample."""

    class_name: str
    split: Split
    defect: str
    name: str
    slices: Mapping[str, AnySlice]
    """By modality; the only one's name is empty as yet where the user does not say it."""
    mask: SourceFile | None


@dataclass(frozen=True)
class DamagedScan:
    """One scan of which nobody can say what it shows; it is told, or left out, when the others are read whole."""

    class_name: str
    split: Split
    defect: str
    name: str
    paths: Mapping[str, Path]
    """By modality, as ``Found.slices``."""
    problem: str
    """Names the file, and says what is wrong and what to do."""

    def images(self) -> dict[str, SourceFile]:
        """Files that refuse to be read, by modality."""
        return {name: refusing(path, self.problem) for name, path in self.paths.items()}


def refusing(path: Path, problem: str) -> SourceFile:
    """A file whose reading raises ValueError with ``problem``."""
    return SourceFile(name=str(path), suffix=".png", read=partial(_refuse, path, problem))


def _refuse(path: Path, problem: str) -> NoReturn:
    raise ValueError(problem)


def check_planes(found: Sequence[Found]) -> None:
    """Raise ValueError where a class shows one modality in two planes: what is normal in one is not in the other."""
    first: dict[tuple[str, str], AnySlice] = {}
    for sample in found:
        for name, item in sample.slices.items():
            other = first.setdefault((sample.class_name, name), item)
            if other.turn.plane != item.turn.plane:
                raise ValueError(
                    f"{other.path} is {other.turn.plane}, {item.path} {item.turn.plane}: make them classes of their own"
                )


def note_spacings(found: Sequence[Found], notices: Notices) -> None:
    """Say in which classes pixels differ in size, between scans or between a picture's axes."""
    for class_name in dict.fromkeys(sample.class_name for sample in found):
        slices = [item for sample in found if sample.class_name == class_name for item in sample.slices.values()]
        spacings = [length for item in slices for length in item.spacing]
        if max(spacings) > SPACING_RATIO * min(spacings):
            notices.add(
                f"class {class_name}: pixels measure from {min(spacings):.3g} to {max(spacings):.3g} mm: one structure "
                "has different sizes in pixels; resample the scans where that matters"
            )


def note_patients(found: Sequence[Found], notices: Notices) -> None:
    """Say where one patient's slices, as DICOM names patients, are in two splits."""
    splits: dict[str, tuple[Split, Path]] = {}
    for sample in found:
        for item in sample.slices.values():
            if isinstance(item, DicomSlice):
                split, path = splits.setdefault(item.patient, (sample.split, item.path))
                if split != sample.split:
                    notices.add(
                        f"{path} ({split}) and {item.path} ({sample.split}) are of one patient: scores and thresholds "
                        "will look better than on others"
                    )
                    return
