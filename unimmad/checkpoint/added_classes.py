"""Classes added to a checkpoint after its training: a file each, CHECKPOINT/added_classes/NAME.safetensors.

A file holds the class's bank (methods/added_class.py) as tensors, and as JSON in the header the class, its modalities,
its thresholds, the digest of the weights that it belongs to, and a digest of all that. Each is whole or not there, goes
with the folder wherever it is copied, and is removed by removing it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import safetensors
import safetensors.torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from unimmad.checkpoint.calibration_scores import SCORES_NAME, forget_scores
from unimmad.checkpoint.feedback import changing, check_settled
from unimmad.checkpoint.monitoring import MONITORING_NAME, load_reference, save_reference
from unimmad.checkpoint.thresholds import THRESHOLDS_NAME, SensorThreshold, load_thresholds, save_thresholds
from unimmad.data.index import ClassName, DatasetEntry
from unimmad.methods.added_class import AddedBank, WithAddedClasses
from unimmad.model.finite import all_finite
from unimmad.serialization.atomic_write import write_aside
from unimmad.serialization.documents import parse_json
from unimmad.serialization.text import one_line
from unimmad.serialization.validation import first_problem

if TYPE_CHECKING:
    from unimmad.checkpoint.loading import LoadedCheckpoint

FOLDER = "added_classes"
FORMAT: Literal[1] = 1
_ENTRY = "unimmad"
"""Key of the JSON in the file's header."""
_REMEDY = "add the class again (--replace), or remove the file"
_LATER = ("digests",)
"""Fields that files of older versions lack; where they say nothing the digest is as it was without them."""
_MOST_LETTERS = 80
"""Of a class's name in its file's."""


class AddedEntry(BaseModel):
    """What stands in a file beside the tensors."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    format: Literal[1] = FORMAT
    class_name: ClassName
    """``DATASET/CLASS``."""
    dataset: DatasetEntry
    """The class's modalities: their slots are the model's."""
    images: Annotated[int, Field(gt=0)]
    """That it was made from."""
    banks: tuple[tuple[str, int], ...]
    """As ``LevelSearch.describe``."""
    thresholds: tuple[SensorThreshold, ...]
    """By set of modalities, those of most images first. They promise nothing: ``fpr_bound`` is 1."""
    borrowed_from: str
    """In words, where their height comes from."""
    weights: str
    """Digest of the checkpoint's weights."""
    digests: tuple[str, ...] = ()
    """Of its images' pixels, in the order of their names; none in files of older versions."""
    sha256: str = ""
    """Of the tensors and of all the rest of the entry."""


@dataclass(frozen=True)
class AddedClass:
    """One added class."""

    entry: AddedEntry
    tensors: Mapping[str, Tensor]
    """State dict of its ``AddedBank``, on the CPU."""

    @property
    def name(self) -> str:
        """``DATASET/CLASS``."""
        return self.entry.class_name

    def threshold(self, modalities: Sequence[str]) -> SensorThreshold | None:
        """That of images of exactly these modalities; None where there is none."""
        return next((one for one in self.entry.thresholds if set(one.modalities) == set(modalities)), None)

    def in_words(self) -> str:
        """What to say beside its numbers."""
        images = "image" if self.entry.images == 1 else "images"
        return f"added from {self.entry.images} {images}, threshold not promised: {self.entry.borrowed_from}"


def added_file(checkpoint: Path, class_name: str) -> Path:
    """Where a class's file is: a name that file systems take, and that differs for different classes."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", class_name).lstrip(".")[:_MOST_LETTERS]
    return checkpoint / FOLDER / f"{plain}~{hashlib.sha256(class_name.encode()).hexdigest()[:10]}.safetensors"


def added_files(checkpoint: Path) -> list[Path]:
    """Of all classes."""
    return sorted((checkpoint / FOLDER).glob("*.safetensors"))


def save_added(added: AddedClass, checkpoint: Path) -> Path:
    """Write a class's file, in place of one that is there; a threshold calibrated for that one is dropped.

    Raises:
        ValueError: the folder cannot be written to.
    """
    entry = added.entry.model_copy(update={"sha256": _digest(added.entry, added.tensors)})
    header = {_ENTRY: entry.model_dump_json()}
    tensors = {name: tensor.contiguous().clone() for name, tensor in added.tensors.items()}
    path = added_file(checkpoint, added.name)
    with changing(checkpoint):
        _forget_calibrated(checkpoint, added.name)
        write_aside(path, lambda temporary: safetensors.torch.save_file(tensors, temporary, metadata=header))
    return path


def remove_added(checkpoint: Path, class_name: str) -> Path:
    """Remove a class's file; returns where it was.

    Raises:
        ValueError: there is none, or it can't be removed.
    """
    path = added_file(checkpoint, class_name)
    with changing(checkpoint):
        _forget_calibrated(checkpoint, class_name)
        try:
            path.unlink()
        except OSError as error:
            raise ValueError(f"{path} can't be removed: {error.strerror}") from None
    return path


def load_added(checkpoint: Path, weights: str) -> list[AddedClass]:
    """All classes added to a checkpoint, by name.

    Args:
        checkpoint: its folder.
        weights: digest of its weights.

    Raises:
        ValueError: a file is damaged, altered, of another form or of other weights; names it.
    """
    found = [_read(path, weights) for path in added_files(checkpoint)]
    return sorted(found, key=lambda added: added.name)


def with_added_classes(checkpoint: LoadedCheckpoint) -> LoadedCheckpoint:
    """The checkpoint with its model knowing the classes that lie in its folder; the same one where there are none.

    Raises:
        ValueError: as ``load_added``, or a bank does not fit the model.
    """
    found = [] if checkpoint.added else load_added(checkpoint.folder, checkpoint.weights_digest)
    return checkpoint if not found else with_classes(checkpoint, found)


def with_classes(checkpoint: LoadedCheckpoint, classes: Iterable[AddedClass]) -> LoadedCheckpoint:
    """The checkpoint, of which none is added, with these.

    Raises:
        ValueError: a bank does not fit the model.
    """
    banks, digest = [], hashlib.sha256(checkpoint.weights_digest.encode())
    by_name = {added.name: added for added in classes}
    for added in by_name.values():
        try:
            banks.append(AddedBank.of(checkpoint.model, added.name, added.entry.banks, added.tensors))
        except ValueError as error:
            raise ValueError(f"{added_file(checkpoint.folder, added.name)}: {error}; {_REMEDY}") from None
        digest.update(_digest(added.entry, added.tensors).encode())
    model = WithAddedClasses(checkpoint.model, banks)
    own = checkpoint.weights_digest
    return replace(checkpoint, model=model, weights_digest=digest.hexdigest(), added=by_name, own_weights=own)


def _read(path: Path, weights: str) -> AddedClass:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_ENTRY, "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path} is damaged: {one_line(error)}; {_REMEDY}") from None
    try:
        entry = AddedEntry.model_validate(parse_json(text, f"{path}: {_ENTRY}"))
    except ValidationError as error:
        raise ValueError(f"{path}: {first_problem(error)}; {_REMEDY}") from None
    except ValueError as error:
        raise ValueError(f"{one_line(error)}; {_REMEDY}") from None
    if entry.sha256 != _digest(entry, tensors):
        raise ValueError(f"{path} is not what add-class wrote: damaged, or altered; {_REMEDY}")
    if entry.weights != weights:
        raise ValueError(f"{path} was made for other weights than those in {path.parent.parent}; {_REMEDY}")
    if broken := [name for name, tensor in tensors.items() if not all_finite(tensor)]:
        raise ValueError(f"{path}: {broken[0]} holds values that are NaN or infinite; {_REMEDY}")
    return AddedClass(entry, tensors)


def _digest(entry: AddedEntry, tensors: Mapping[str, Tensor]) -> str:
    later = {name for name in _LATER if getattr(entry, name) == AddedEntry.model_fields[name].default}
    values: dict[str, Any] = entry.model_dump(mode="json", exclude={"sha256", *later})
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()


def _forget_calibrated(checkpoint: Path, class_name: str) -> None:
    """A calibrated threshold holds for the bank that it was made with, and so does what a monitor compares with. In
    ``changing``."""
    thresholds = load_thresholds(checkpoint)
    if thresholds is None or class_name not in {*thresholds.classes, *thresholds.trained_classes}:
        return
    check_settled(checkpoint)
    left = thresholds.without(class_name)
    if left is None:
        (checkpoint / THRESHOLDS_NAME).unlink()
        for name in (MONITORING_NAME, SCORES_NAME):
            (checkpoint / name).unlink(missing_ok=True)
        return
    forget_scores(checkpoint, class_name)
    save_thresholds(left, checkpoint)
    try:
        reference = load_reference(checkpoint)
    except ValueError:  # damaged: it would be refused, and has the class perhaps
        (checkpoint / MONITORING_NAME).unlink(missing_ok=True)
        return
    if reference is not None and class_name in reference.classes:
        save_reference(reference.without(class_name), checkpoint)
