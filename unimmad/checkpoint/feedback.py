"""What people said of predictions, as it lies in a checkpoint's folder: CHECKPOINT/feedback/NNNN.json, a version each.

A version holds the images that were called normal or anomalous with their scores, the thresholds before and after it,
and by digest the rows that banks grew by (NNNN.safetensors). Its JSON is written last but for ``thresholds.json``
itself: with it the version is there, and what an interruption left to do is done by ``settle``. Undoing the newest
version removes its files and puts back what was before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from unimmad.checkpoint.monitoring import MONITORING_NAME
from unimmad.checkpoint.thresholds import Thresholds, load_thresholds, save_thresholds
from unimmad.data.index import ClassName
from unimmad.methods.growing import BankPlace
from unimmad.serialization.atomic_write import write_aside, write_text_aside
from unimmad.serialization.documents import read_json
from unimmad.serialization.folder_lock import FolderLock
from unimmad.serialization.text import one_line
from unimmad.serialization.validation import first_problem

FOLDER = "feedback"
FORMAT: Literal[1] = 1
LOCK_NAME = "writing"
Decision = Literal["normal", "anomalous"]
REMEDY = "remove the folder and calibrate again"
_CHECKED = "sha256"
_VERSIONS = "[0-9]*.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class CalledImage(_Frozen):
    """One sample that was looked at."""

    name: str
    """As the predictions called it."""
    class_name: ClassName
    """``DATASET/CLASS``."""
    modalities: tuple[str, ...]
    files: dict[str, str]
    """Where its images were, by modality."""
    digest: str
    """Of its images' pixels: a copy under another name has the same."""
    decision: Decision
    score: float
    """By banks that did not hold it, none of them larger than it was after this version."""
    as_they_came: bool = False
    """Whether it is one of a whole run of images of which each was called, so that no choice was made by the scores."""
    in_bank: bool = False


class GrownBank(_Frozen):
    """Rows for one bank; their key in the version's tensors is their place among all."""

    added: str
    level: int
    class_name: str
    slot: int
    of_bank: str
    """``growing.bank_digest`` of the bank that they were made for."""

    @property
    def place(self) -> BankPlace:
        return BankPlace(self.added, self.level, self.class_name, self.slot)


class FeedbackVersion(_Frozen):
    """One file."""

    format: Literal[1] = FORMAT
    number: Annotated[int, Field(gt=0)]
    time: str
    """ISO 8601."""
    weights: str
    """Digest of the checkpoint's weights."""
    images: tuple[CalledImage, ...]
    before: Thresholds
    after: Thresholds
    grown: tuple[GrownBank, ...] = ()
    rows_sha256: str = ""
    """Of the file of rows; empty where no bank grew."""
    monitored: bool = False
    """Whether ``NNNN.monitoring.safetensors`` is what lay there before."""


@dataclass(frozen=True)
class Feedback:
    """All versions of a checkpoint, the oldest first."""

    versions: tuple[FeedbackVersion, ...] = ()
    counted: tuple[FeedbackVersion, ...] = ()
    """The newest ones, with which the thresholds of today were made; those from before the last calibration have only
    let banks grow."""

    @property
    def images(self) -> dict[str, CalledImage]:
        """What counts today, by digest; what was said last of an image holds."""
        return {image.digest: image for version in self.counted for image in version.images}

    @property
    def in_banks(self) -> set[str]:
        """Digests of all images that a bank holds."""
        return {image.digest for version in self.versions for image in version.images if image.in_bank}


@contextmanager
def changing(checkpoint: Path) -> Iterator[None]:
    """No other process changes the feedback meanwhile.

    Raises:
        ValueError: one does, or the folder can't be written to.
    """
    with FolderLock(LOCK_NAME, "feedback", "stop it") as lock:
        lock.take(checkpoint / FOLDER)
        yield


def load_feedback(checkpoint: Path, weights: str | None, thresholds: Thresholds | None) -> Feedback:
    """All versions, held against the thresholds of today.

    Args:
        checkpoint: its folder.
        weights: digest of its weights; None: they are not compared.
        thresholds: those beside it.

    Raises:
        ValueError: a file is damaged, missing or of other weights; names it.
    """
    paths = sorted((checkpoint / FOLDER).glob(_VERSIONS))
    versions = tuple(_read(path, number, weights) for number, path in enumerate(paths, start=1))
    counted: list[FeedbackVersion] = []
    wanted = thresholds
    for version in reversed(versions):
        if wanted is None or version.after != wanted:
            break
        counted.insert(0, version)
        wanted = version.before
    return Feedback(versions, tuple(counted))


def has_feedback(checkpoint: Path) -> bool:
    """Whether a checkpoint has any."""
    return any((checkpoint / FOLDER).glob(_VERSIONS))


def settle(checkpoint: Path) -> None:
    """Finish what was interrupted: a version whose thresholds were not written yet.

    Raises:
        ValueError: as ``load_feedback``.
    """
    thresholds = load_thresholds(checkpoint)
    versions = load_feedback(checkpoint, None, thresholds).versions
    if versions and thresholds == versions[-1].before != versions[-1].after:
        save_thresholds(versions[-1].after, checkpoint)


def save_version(
    version: FeedbackVersion, rows: Mapping[BankPlace, Tensor], digests: Mapping[BankPlace, str], checkpoint: Path
) -> Path:
    """Write a version, then its thresholds; what monitoring compares with is kept aside. Returns the version's file.

    Args:
        version: its ``grown`` and what follows are filled in here.
        rows: by which banks grew, on the CPU.
        digests: ``growing.bank_digest`` of each.
        checkpoint: its folder.

    Raises:
        ValueError: the folder can't be written to.
    """
    path = version_file(checkpoint, version.number)
    places, rows_file, kept = list(rows), path.with_suffix(".safetensors"), path.with_suffix(".monitoring.safetensors")
    grown = tuple(
        GrownBank(
            added=place.added,
            level=place.level,
            class_name=place.class_name,
            slot=place.slot,
            of_bank=digests[place],
        )
        for place in places
    )
    sha256 = ""
    if places:
        tensors = {str(number): rows[place].contiguous() for number, place in enumerate(places)}
        write_aside(rows_file, lambda temporary: safetensors.torch.save_file(tensors, temporary))
        sha256 = hashlib.sha256(rows_file.read_bytes()).hexdigest()
    monitoring = checkpoint / MONITORING_NAME
    monitored = monitoring.is_file()
    if monitored:
        content = monitoring.read_bytes()
        write_aside(kept, lambda temporary: temporary.write_bytes(content))
    whole = version.model_copy(update={"grown": grown, "rows_sha256": sha256, "monitored": monitored})
    values = whole.model_dump(mode="json", by_alias=True)
    write_text_aside(path, json.dumps({_CHECKED: _digest(values), **values}) + "\n")
    if whole.after != whole.before:
        save_thresholds(whole.after, checkpoint)
    return path


def undo(checkpoint: Path, feedback: Feedback) -> FeedbackVersion:
    """Take the newest version back; gives it.

    Raises:
        ValueError: there is none, the thresholds were made again since, or a file can't be removed.
    """
    if not feedback.versions:
        raise ValueError(f"{checkpoint} has no feedback that could be undone")
    newest = feedback.versions[-1]
    path = version_file(checkpoint, newest.number)
    if not feedback.counted:
        raise ValueError(
            f"version {newest.number} can't be undone: the thresholds were made again since, with the banks that it "
            f"let grow; to be rid of all feedback, remove {path.parent} and calibrate again"
        )
    kept = path.with_suffix(".monitoring.safetensors")
    if newest.after != newest.before:
        save_thresholds(newest.before, checkpoint)
    try:
        if newest.monitored and kept.is_file():
            content = kept.read_bytes()
            write_aside(checkpoint / MONITORING_NAME, lambda temporary: temporary.write_bytes(content))
        path.unlink()
        for other in (path.with_suffix(".safetensors"), kept):
            other.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"{path} can't be removed: {error.strerror}") from None
    return newest


def version_file(checkpoint: Path, number: int) -> Path:
    """Where a version is; rows of banks lie beside it with another suffix."""
    return checkpoint / FOLDER / f"{number:04d}.json"


def _read(path: Path, number: int, weights: str | None) -> FeedbackVersion:
    try:
        values = read_json(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {one_line(error)}; {REMEDY}") from None
    digest = values.pop(_CHECKED, None) if isinstance(values, dict) else None
    try:
        version = FeedbackVersion.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise ValueError(f"{path}: {first_problem(error)}; {REMEDY}") from None
    if digest != _digest(values):
        raise ValueError(f"{path} is not what unimmad feedback wrote: damaged, or altered; {REMEDY}")
    if version.number != number or path != version_file(path.parent.parent, number):
        raise ValueError(f"{path}: version {number} is missing before it; {REMEDY}")
    if weights not in (None, version.weights):
        raise ValueError(f"{path} is of other weights than those in {path.parent.parent}; {REMEDY}")
    return version


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
