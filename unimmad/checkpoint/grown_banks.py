"""Banks of a checkpoint as feedback let them grow: rows of all its versions, put where they belong."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
from torch import Tensor

from unimmad.checkpoint.added_classes import added_files
from unimmad.checkpoint.digests import file_digest
from unimmad.checkpoint.feedback import REMEDY, Feedback, FeedbackVersion, load_feedback, version_file
from unimmad.methods.growing import append_rows, bank_digest
from unimmad.model.finite import check_finite
from unimmad.serialization.text import one_line

if TYPE_CHECKING:
    from unimmad.checkpoint.added_classes import AddedClass
    from unimmad.checkpoint.loading import LoadedCheckpoint


def with_feedback(checkpoint: LoadedCheckpoint) -> LoadedCheckpoint:
    """The checkpoint, its added classes included, with the banks grown by what was called normal; the same one where
    none grew. Its model's banks are replaced, of one model once.

    Raises:
        ValueError: as ``feedback.load_feedback``, or rows do not fit their bank.
    """
    if checkpoint.grown:
        return checkpoint
    folder, digest = checkpoint.folder, hashlib.sha256(checkpoint.weights_digest.encode())
    weights = checkpoint.own_weights or checkpoint.weights_digest
    grew = False
    for version in load_feedback(folder, weights, None).versions:
        path = version_file(folder, version.number).with_suffix(".safetensors")
        for number, (bank, rows_nD) in enumerate(zip(version.grown, _rows(path, version), strict=True)):
            if bank.added and bank.of_bank != bank_digest(checkpoint.model, bank.place):
                continue  # the class was removed or put in another's place since
            try:
                append_rows(checkpoint.model, bank.place, rows_nD, once=f"{version.rows_sha256} {number}")
            except ValueError as error:
                raise ValueError(f"{path}: {error}; {REMEDY}") from None
            grew = True
        digest.update(version.rows_sha256.encode())
    return replace(checkpoint, weights_digest=digest.hexdigest(), grown=True) if grew else checkpoint


def stored_banks(checkpoint: Path) -> list[str]:
    """What lies beside a checkpoint of banks, by digests: a change of it shows in them.

    Raises:
        ValueError: feedback is damaged, or an added class can't be read.
    """
    try:
        added = [f"{path.name} {file_digest(path)}" for path in added_files(checkpoint)]
    except OSError as error:
        raise ValueError(f"{checkpoint}: an added class can't be read: {error.strerror}") from None
    rows = [version.rows_sha256 for version in load_feedback(checkpoint, None, None).versions if version.grown]
    return [*added, *rows]


def banked_digests(feedback: Feedback, added: Mapping[str, AddedClass]) -> set[str]:
    """Of the pixels of all images that were put into a bank after training, as far as it is known."""
    return feedback.in_banks(digests_of_added(added)).union(*(one.entry.digests for one in added.values()))


def banked_by_class(feedback: Feedback, added: Mapping[str, AddedClass]) -> dict[str, set[str]]:
    """The same, by class."""
    found = {name: set(one.entry.digests) for name, one in added.items()}
    for name, digests in feedback.in_banks_by_class(digests_of_added(added)).items():
        found.setdefault(name, set()).update(digests)
    return found


def digests_of_added(added: Mapping[str, AddedClass]) -> dict[str, str]:
    """By which ``Feedback`` tells added classes from earlier ones of the same name."""
    return {name: one.entry.sha256 for name, one in added.items()}


def _rows(path: Path, version: FeedbackVersion) -> Sequence[Tensor]:
    if not version.grown:
        return []
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != version.rows_sha256:
            raise ValueError("it is damaged, or altered")
        tensors = safetensors.torch.load(data)
        check_finite(tensors, str(path))
        return [tensors[str(number)] for number in range(len(version.grown))]
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: {one_line(error)}; {REMEDY}") from None
