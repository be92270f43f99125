"""What people said of predictions, as it lies in a checkpoint's folder: CHECKPOINT/feedback/NNNN.json, a version each.

A version holds the images that were called normal or anomalous with their scores, the thresholds before and after it,
and by digest the rows that banks grew by (NNNN.safetensors). It is written as NNNN.pending, and takes that name when
``thresholds.json`` and what monitoring compares with are as it says. Undoing the newest version renames it to
NNNN.undone, puts back what was before, and removes its files. What an interruption leaves of either to do does
``settle``. Calibration writes into ``closed`` how many versions there were, whose scores no longer count.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from unimmad.checkpoint.monitoring import MONITORING_NAME, MonitoringReference, load_reference, save_reference
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
_CLOSED = "closed"
_VERSIONS, _PENDING, _UNDONE = ".json", ".pending", ".undone"
"""Endings of a version's own file."""
_NUMBER = re.compile(r"[0-9]{4,}")
_ROWS, _BEFORE, _AFTER = ".safetensors", ".monitoring.safetensors", ".monitoring-after.safetensors"
"""Endings of files beside a version's: rows of banks, and what monitoring compared with before and does after it."""


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
    of_added: str = ""
    """Digest of the added class that it is of, by which one that takes its place is told apart; empty of others."""


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

    def images(self, added: Mapping[str, str]) -> dict[str, CalledImage]:
        """What counts today, by digest; what was said last of an image holds.

        Args:
            added: digest of each added class: images of an earlier one of that name count no longer.
        """
        return {image.digest: image for image in _of_classes(self.counted, added)}

    def in_banks(self, added: Mapping[str, str]) -> set[str]:
        """Digests of all images that a bank holds; ``added`` as for ``images``."""
        return set().union(*self.in_banks_by_class(added).values())

    def in_banks_by_class(self, added: Mapping[str, str]) -> dict[str, set[str]]:
        """The same, by ``DATASET/CLASS``."""
        found: dict[str, set[str]] = {}
        for image in _of_classes(self.versions, added):
            if image.in_bank:
                found.setdefault(image.class_name, set()).add(image.digest)
        return found


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
    paths = _files(checkpoint, _VERSIONS)
    versions = tuple(_read(path, number, weights) for number, path in enumerate(paths, start=1))
    closed = _closed(checkpoint)
    counts = bool(versions) and _holds(versions[-1].after, thresholds)
    return Feedback(versions, tuple(version for version in versions if counts and version.number > closed))


def in_order(paths: Iterable[Path]) -> list[Path]:
    """By number, which has four digits or more."""
    return sorted(paths, key=lambda path: int(path.stem))


def has_feedback(checkpoint: Path) -> bool:
    """Whether a checkpoint has any."""
    return bool(_files(checkpoint, _VERSIONS))


def close(checkpoint: Path) -> None:
    """The scores of all versions no longer count, since thresholds are made again.

    Raises:
        ValueError: the folder can't be written to.
    """
    if paths := _files(checkpoint, _VERSIONS):
        write_text_aside(checkpoint / FOLDER / _CLOSED, f"{int(paths[-1].stem)}\n")


def is_interrupted(checkpoint: Path) -> bool:
    """Whether something is left to ``settle``."""
    return bool(_interrupted(checkpoint))


def check_settled(checkpoint: Path) -> None:
    """
    Raises:
        ValueError: something was interrupted.
    """
    if is_interrupted(checkpoint):
        raise ValueError(
            f"{checkpoint}: feedback was interrupted there: let unimmad feedback --checkpoint {checkpoint} finish it "
            "first"
        )


def settle(checkpoint: Path) -> None:
    """Finish what was interrupted, in ``changing``.

    Raises:
        ValueError: a file is damaged, or can't be written.
    """
    for path in _interrupted(checkpoint):
        (_finish_undo if path.suffix == _UNDONE else _finish_saving)(checkpoint, path)


def save_version(
    version: FeedbackVersion,
    rows: Mapping[BankPlace, Tensor],
    digests: Mapping[BankPlace, str],
    checkpoint: Path,
    reference: MonitoringReference | None = None,
) -> Path:
    """Write a version, its thresholds, and what monitoring compares with from now on; returns the version's file.

    Args:
        version: its ``grown`` and what follows are filled in here.
        rows: by which banks grew, on the CPU.
        digests: ``growing.bank_digest`` of each.
        checkpoint: its folder.
        reference: what monitoring compares with; None: as before.

    Raises:
        ValueError: the folder can't be written to.
    """
    path = version_file(checkpoint, version.number)
    places, rows_file = list(rows), path.with_suffix(_ROWS)
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
        _copy(monitoring, path.with_suffix(_BEFORE))
    after = path.with_suffix(_AFTER)
    after.unlink(missing_ok=True)
    if reference is not None:
        write_aside(after, lambda temporary: temporary.write_bytes(reference.as_bytes()))
    whole = version.model_copy(update={"grown": grown, "rows_sha256": sha256, "monitored": monitored})
    values = whole.model_dump(mode="json", by_alias=True)
    pending = path.with_suffix(_PENDING)
    write_text_aside(pending, json.dumps({_CHECKED: _digest(values), **values}) + "\n")
    _finish_saving(checkpoint, pending)
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
    undone = path.with_suffix(_UNDONE)
    try:
        path.replace(undone)
    except OSError as error:
        raise ValueError(f"{path} can't be removed: {error.strerror}") from None
    _finish_undo(checkpoint, undone)
    return newest


def version_file(checkpoint: Path, number: int) -> Path:
    """Where a version is; rows of banks lie beside it with another suffix."""
    return checkpoint / FOLDER / f"{number:04d}.json"


def _finish_saving(checkpoint: Path, pending: Path) -> None:
    """Thresholds and monitoring as a version says, then its name; twice does no harm."""
    version, after = _read(pending, int(pending.stem), None), pending.with_suffix(_AFTER)
    thresholds = load_thresholds(checkpoint)
    if not (_holds(version.before, thresholds) or _holds(version.after, thresholds)):  # changed by hand since
        _remove(pending)
        return
    if version.after != version.before:
        save_thresholds(version.after, checkpoint)
    if after.is_file():
        _copy(after, checkpoint / MONITORING_NAME)
    try:
        pending.replace(pending.with_suffix(".json"))
        after.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"{pending} can't be renamed: {error.strerror}") from None


def _finish_undo(checkpoint: Path, undone: Path) -> None:
    """Thresholds and monitoring as they were before a version, without classes that were removed since; then its files
    go. Twice does no harm."""
    version, kept = _read(undone, int(undone.stem), None), undone.with_suffix(_BEFORE)
    now = load_thresholds(checkpoint)
    if now is not None and (_holds(version.before, now) or _holds(version.after, now)):
        removed = version.before.classes.keys() & version.after.classes.keys() - now.classes.keys()
        before: Thresholds | None = version.before
        for name in removed:
            before = None if before is None else before.without(name)
        if before is not None and before != now:
            save_thresholds(before, checkpoint)
        if version.monitored and kept.is_file():
            _copy(kept, checkpoint / MONITORING_NAME)
            reference = load_reference(checkpoint)
            for name in removed:
                reference = None if reference is None else reference.without(name)
            if removed and reference is not None:
                save_reference(reference, checkpoint)
    _remove(undone)


def _remove(path: Path) -> None:
    """A version with the files beside it, which go first."""
    try:
        for ending in (_ROWS, _BEFORE, _AFTER):
            path.with_suffix(ending).unlink(missing_ok=True)
        path.unlink()
    except OSError as error:
        raise ValueError(f"{path} can't be removed: {error.strerror}") from None


def _copy(path: Path, target: Path) -> None:
    content = path.read_bytes()
    write_aside(target, lambda temporary: temporary.write_bytes(content))


def _interrupted(checkpoint: Path) -> list[Path]:
    return [*_files(checkpoint, _UNDONE), *_files(checkpoint, _PENDING)]


def _files(checkpoint: Path, ending: str) -> list[Path]:
    """Those of versions, in their order; other files that somebody put there are passed over."""
    return in_order(path for path in (checkpoint / FOLDER).glob(f"*{ending}") if _NUMBER.fullmatch(path.stem))


def _closed(checkpoint: Path) -> int:
    path = checkpoint / FOLDER / _CLOSED
    try:
        return int(path.read_text()) if path.is_file() else 0
    except (OSError, ValueError):
        raise ValueError(f"{path} is not what unimmad calibrate wrote: damaged, or altered; {REMEDY}") from None


def _holds(known: Thresholds, now: Thresholds | None) -> bool:
    """Whether the thresholds of today are the known ones, perhaps without classes that were removed since."""
    return (
        now is not None
        and known.false_alarm_rate == now.false_alarm_rate
        and all(known.classes.get(name) == found for name, found in now.classes.items())
    )


def _of_classes(versions: Iterable[FeedbackVersion], added: Mapping[str, str]) -> Iterator[CalledImage]:
    for version in versions:
        for image in version.images:
            if image.of_added == added.get(image.class_name, ""):
                yield image


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
    if version.number != number or path.stem != f"{number:04d}":
        raise ValueError(f"{path}: version {number} is missing before it; {REMEDY}")
    if weights not in (None, version.weights):
        raise ValueError(f"{path} is of other weights than those in {path.parent.parent}; {REMEDY}")
    return version


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
