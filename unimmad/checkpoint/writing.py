"""What one process writes of checkpoints: a whole model, of a conversion or of a method that is fitted, not trained;
and that a run has ended."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from unimmad.checkpoint.digests import DIGESTS_NAME, file_digest, known_digests, write_digests
from unimmad.checkpoint.folder import STATE_NAME, CheckpointFolder, read_state
from unimmad.checkpoint.state import write_index_and_state
from unimmad.checkpoint.tensor_slices import TensorSlice, write_pieces


def write_model(folder: CheckpointFolder, model: nn.Module, state: dict[str, Any]) -> Path:
    """Write the only checkpoint of a run folder; gives its path.

    Args:
        folder: of the run.
        model: in its local form.
        state: of ``build_state``.

    Raises:
        ValueError: the folder can't be written to.
    """
    step = int(state["step"])
    partial: Path | None = None
    try:
        partial = folder.begin(step)
        pieces = (TensorSlice(name, tuple(tensor.shape), 0, tensor) for name, tensor in model.state_dict().items())
        file = partial / "model-00000.safetensors"
        write_pieces(file, pieces)
        write_index_and_state(partial, state, {file.name: file_digest(file)})
        return folder.commit(partial, step, keep=1)
    except OSError as error:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        raise ValueError(
            f"the checkpoint can't be written to {folder.root}: {error.strerror or error}; choose another --output-dir"
        ) from None


def mark_finished(folder: CheckpointFolder, checkpoint: Path, keep: int) -> Path:
    """Put a checkpoint that says that its schedule has ended in the place of the same one that does not say so.

    Args:
        folder: of the run.
        checkpoint: one of its own.
        keep: as ``CheckpointFolder.commit``'s.

    Raises:
        ValueError: the folder can't be written to.
    """
    state = read_state(checkpoint)
    partial: Path | None = None
    try:
        partial = folder.begin(int(state["step"]))
        digests = known_digests(checkpoint) or {}
        for path in checkpoint.iterdir():
            if path.is_dir():  # feedback and added classes
                shutil.copytree(path, partial / path.name, copy_function=_same_file)
            elif path.name not in (STATE_NAME, DIGESTS_NAME):  # which are written again
                _same_file(path, partial / path.name)
        (partial / STATE_NAME).write_text(json.dumps({**state, "finished": True}, indent=2) + "\n", encoding="utf-8")
        write_digests(partial, {name: digest for name, digest in digests.items() if name.endswith(".safetensors")})
        return folder.commit(partial, int(state["step"]), keep)
    except OSError as error:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        raise ValueError(f"the checkpoint can't be written to {folder.root}: {error.strerror or error}") from None


def _same_file(path: str | Path, copy: str | Path) -> None:
    """A second name of the file where the file system has such, else a copy."""
    try:
        os.link(path, copy)
    except OSError:
        shutil.copy2(path, copy)
