"""From a checkpoint folder to a model in its local form: for evaluation, prediction, fine-tuning."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unimmad.checkpoint.added_classes import AddedClass
from unimmad.checkpoint.digests import verify_checkpoint
from unimmad.checkpoint.folder import STATE_NAME, read_state
from unimmad.checkpoint.state import FITTED
from unimmad.checkpoint.tensor_slices import TensorReader
from unimmad.checkpoint.trained_on import TrainedOn, read_trained_on
from unimmad.config import Recipe, as_it_was_meant, parse_recipe
from unimmad.data.index import DatasetEntry
from unimmad.methods.registry import METHODS, Registry, build_method, settings_of
from unimmad.model.method import Fitted, Method
from unimmad.ranks.exchange import ALONE, Ranks

logger = logging.getLogger(__name__)

OPTIMIZER_PREFIX = "optimizer/"
"""Names of optimizer tensors: ``optimizer/exp_avg/PARAMETER``."""


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint's model and what is known of it."""

    folder: Path
    """Folder that it was read from."""
    recipe: Recipe
    """Recipe that it was trained by."""
    model: Method
    """Network with the checkpoint's weights."""
    state: dict[str, Any]
    """Content of its state.json."""
    weights_digest: str
    """SHA-256 of all the model's tensors as they were read; an inference form has others."""
    added: Mapping[str, AddedClass] = field(default_factory=dict)
    """Classes added after training that the model knows, by ``DATASET/CLASS``: see ``with_added_classes``."""
    own_weights: str = ""
    """``weights_digest`` as it was before classes were added; empty: none were."""
    grown: bool = False
    """Whether the model's banks hold what feedback added: see ``grown_banks.with_feedback``."""

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def trained_on(self) -> TrainedOn | None:
        """Classes and modalities that training saw; None where the checkpoint does not say.

        Raises:
            ValueError: it says it in another form.
        """
        return read_trained_on(self.state, str(self.folder / STATE_NAME))

    @property
    def trained_datasets(self) -> dict[str, DatasetEntry] | None:
        """The datasets of ``trained_on``."""
        return None if self.trained_on is None else self.trained_on.datasets

    @property
    def backbone_weights(self) -> str:
        """In words, what the backbone was loaded with when training began."""
        return str(self.state.get("backbone_weights", "not said"))


def load_checkpoint(
    folder: Path, *, verify: bool = True, ranks: Ranks = ALONE, methods: Registry = METHODS
) -> LoadedCheckpoint:
    """Build the checkpoint's own recipe's model and fill it; the model is in eval mode, on the CPU.

    The optimizer's files need not be there, and are not read.

    Args:
        folder: of the checkpoint.
        verify: hold the files against their digests.
        ranks: those that load it at the same time, and share that.
        methods: its own among them.

    Raises:
        ValueError: the folder is not a whole checkpoint, a file is not what was saved, or the tensors do not fit the
            recipe.
    """
    if verify:
        with ranks.together():
            verify_checkpoint(folder, OPTIMIZER_PREFIX, (ranks.rank, ranks.size))
    state = read_state(folder)
    recipe = parse_recipe(as_it_was_meant(state["recipe"]), f"{folder / STATE_NAME}: recipe", settings_of(methods))
    reader = TensorReader(folder, without=OPTIMIZER_PREFIX)
    # First without memory: a recipe may ask for more than any machine has, and its tensors would not be there.
    with torch.device("meta"):
        reader.check_fits(with_room_for(reader, state, _shapes_of(recipe, methods, folder), folder).state_dict())
    model = with_room_for(reader, state, build_method(recipe, methods), folder)
    fill_model(model, reader)
    return LoadedCheckpoint(folder, recipe, model.eval(), state, _digest(model))


def _shapes_of(recipe: Recipe, methods: Registry, folder: Path) -> Method:
    """The recipe's model on the meta device."""
    try:
        with torch.device("meta"):
            return build_method(recipe, methods)
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes that no tensor can have
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder / STATE_NAME}: recipe: no model can have these sizes ({reason})") from None


def with_room_for(reader: TensorReader, state: Mapping[str, Any], model: Method, folder: Path) -> Method:
    """The model with room for the checkpoint's tensors, where their shapes come from the data it was fitted to.

    Raises:
        ValueError: ``state`` does not say what that was, or these are not its tensors.
    """
    if not isinstance(model, Fitted):
        return model
    description = state.get(FITTED)
    if not isinstance(description, dict):
        raise ValueError(f"{folder / STATE_NAME} lacks {FITTED!r}, which says what the method was fitted to")
    try:
        model.restore(description)
        model.resize({name: reader.shape(name) for name in reader.names("")})
    except ValueError as error:
        raise ValueError(f"{folder / STATE_NAME}: {FITTED}: {error}") from None
    return model


def fill_model(model: Method, reader: TensorReader, own: Sequence[str] = ()) -> None:
    """Load every tensor of a local-form model but its ``own``.

    Raises:
        ValueError: a tensor is missing or of another shape or type: the checkpoint is of another recipe, or damaged.
    """
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in own}
    reader.check_fits(tensors)
    for name, tensor in tensors.items():
        reader.read_into(tensor.view(-1), name, 0)


def _digest(model: Method) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()
