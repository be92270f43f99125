"""A whole model as a checkpoint, by one process: of a conversion, or of a method that is fitted, not trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from unimmad.checkpoint.digests import file_digest
from unimmad.checkpoint.folder import CheckpointFolder
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
