"""Shards and checkpoints made without training, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unimmad.checkpoint.digests import file_digest, write_digests
from unimmad.checkpoint.folder import CheckpointFolder
from unimmad.checkpoint.state import Layout, build_state, write_index_and_state
from unimmad.checkpoint.tensor_slices import TensorSlice, write_pieces
from unimmad.checkpoint.trained_on import TrainedOn
from unimmad.config import EvaluationSettings, Precision, Recipe
from unimmad.data.sample import Batch
from unimmad.data.synthetic import synthetic_sets
from unimmad.data.writing.shards import write_shards
from unimmad.evaluation.scoring import score_on_device
from unimmad.methods.registry import new_model
from unimmad.model.method import Method
from unimmad.model.unimmad import UniMMAD


def hand_made_shards(folder: Path, sets: Sequence[str]) -> Path:
    """Two training and three test images (one of them normal) of each class of some synthetic sets."""
    drawn = synthetic_sets(train_per_class=2, normal_per_class=1, anomalous_per_class=2)
    write_shards([found for found in drawn if found.name in sets], folder, progress=False)
    return folder


def hand_made_checkpoint(
    run: Path, recipe: Recipe, data: Sequence[Path], step: int = 3, trained_on: TrainedOn | None = None
) -> tuple[Path, UniMMAD]:
    """An untrained model as the checkpoint of ``step``, in two files as two ranks would write it."""
    model, origin = new_model(recipe, seed=step)
    folder = CheckpointFolder(run)
    partial = folder.begin(step)
    pieces = [TensorSlice(name, tuple(tensor.shape), 0, tensor) for name, tensor in model.state_dict().items()]
    digests = {}
    for rank in range(2):
        file = partial / f"model-{rank:05d}.safetensors"
        write_pieces(file, pieces[rank::2])
        digests[file.name] = file_digest(file)
    state = build_state(
        recipe,
        step=step,
        finished=False,
        backbone_weights=origin,
        data=[str(path) for path in data],
        layout=Layout(world_size=2),
        trained_on=trained_on,
    )
    write_index_and_state(partial, state, digests)
    return folder.commit(partial, step, keep=2), model.eval()


def maps_of(
    model: Method, batch: Batch, settings: EvaluationSettings, precision: Precision = "fp32"
) -> tuple[Tensor, Tensor]:
    """What the model gives on the CPU: blurred anomaly maps [B, H, W] and image scores [B]."""
    found = score_on_device(model, batch, settings, torch.device("cpu"), precision)
    return found.maps_BHW, found.scores_B


def take_digests_again(checkpoint: Path) -> None:
    """So that what a test changed counts as what was saved."""
    write_digests(checkpoint, {file.name: file_digest(file) for file in checkpoint.glob("*.safetensors")})


def spoil_weight(checkpoint: Path, name: str, value: float) -> Path:
    """Give one value of a stored tensor another value; returns its file."""
    file = next(path for path in sorted(checkpoint.glob("model-*.safetensors")) if name in load_file(path))
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
    tensors = load_file(file)
    tensors[name].view(-1)[0] = value
    save_file(tensors, file, metadata=metadata)
    take_digests_again(checkpoint)
    return file
