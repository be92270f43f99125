"""From the authors' released weights to a checkpoint of ours, at step 0 of a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unimmad.checkpoint.folder import CheckpointFolder
from unimmad.checkpoint.released import Translation, load_released, read_released
from unimmad.checkpoint.state import Layout, build_state
from unimmad.checkpoint.writing import write_model
from unimmad.config import Recipe
from unimmad.methods.registry import new_model
from unimmad.model.backbone import load_backbone_weights
from unimmad.model.unimmad import UniMMAD

STEP = 0


@dataclass(frozen=True)
class Conversion:
    """A checkpoint that was written, and what went into it."""

    checkpoint: Path
    loaded: int
    """Released tensors that the model took over."""
    dropped: dict[str, int]
    """Released tensors without use, counted by the part they belong to."""
    backbone_weights: str
    """In words, what the teacher was loaded with."""


def convert_released(released: Path, run: Path, recipe: Recipe) -> Conversion:
    """Write the weights of the folder ``released`` as the checkpoint of a new run folder ``run``.

    The released files leave the frozen teacher out: it comes from ``recipe.model.backbone_weights``.

    Raises:
        ValueError: ``run`` has a checkpoint already or can't be written; a released file is missing, damaged, or of
            another image size or other sizes than the recipe; or the teacher's weights can't be had.
    """
    folder = CheckpointFolder(run)
    existing = folder.newest()
    if existing is not None:
        raise ValueError(f"{run} holds a checkpoint already ({existing.name}); choose another --output-dir")
    translation = read_released(released)
    model, backbone_weights = _converted_model(translation, recipe)
    state = build_state(
        recipe, step=STEP, finished=True, backbone_weights=backbone_weights, data=[], layout=Layout()
    ) | {"converted_from": str(released)}
    checkpoint = write_model(folder, model, state)
    return Conversion(checkpoint, len(translation.state), translation.dropped_by_part(), backbone_weights)


def _converted_model(translation: Translation, recipe: Recipe) -> tuple[UniMMAD, str]:
    """The teacher's weights come last: fetching them takes longest, and files that don't fit are told of before."""
    without_teacher = recipe.model.model_copy(update={"backbone_weights": "none"})
    model, _ = new_model(recipe.model_copy(update={"model": without_teacher}))
    assert isinstance(model, UniMMAD)
    load_released(model, translation)
    return model, load_backbone_weights(model.teacher, recipe.model.backbone_weights)
