"""Saves and restores a training run: every rank writes what it holds; any layout reads it back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unimmad.checkpoint.digests import file_digest
from unimmad.checkpoint.folder import CheckpointFolder
from unimmad.checkpoint.loading import OPTIMIZER_PREFIX
from unimmad.checkpoint.state import Layout, build_state, write_index_and_state
from unimmad.checkpoint.tensor_slices import TensorReader, TensorSlice, write_pieces
from unimmad.checkpoint.trained_on import TrainedOn
from unimmad.config import Recipe
from unimmad.methods.registry import METHODS, Registry
from unimmad.model.method import Fitted
from unimmad.parallel.engine import Engine, OptimizerPiece
from unimmad.parallel.placement import fqn
from unimmad.training.composing import Composing


@dataclass(frozen=True)
class RunFacts:
    """What a checkpoint says of its run beside the tensors."""

    recipe: Recipe
    backbone_weights: str
    data: list[str]
    zero_stage: int
    trained_on: TrainedOn | None = None
    composing: Composing | None = None
    seconds: float = 0.0
    """Of training before this start."""
    methods: Registry = field(default_factory=lambda: METHODS)
    """The recipe's among them."""
    growth: Mapping[str, Any] | None = None
    """What a run that grows out of another checkpoint was begun with."""


def save_checkpoint(
    folder: CheckpointFolder, engine: Engine, facts: RunFacts, step: int, finished: bool, seconds: float | None = None
) -> Path:
    """Write the checkpoint of ``step`` together; rank 0 makes it visible when all have written.

    Raises:
        ValueError: some rank could not write; the checkpoint before it is untouched.
    """
    world, told = engine.world, _told(folder, step)
    partial = world.on_main(told(lambda: folder.begin(step)))
    try:
        written = world.ranks.gather(world.together(told(lambda: _write_tensors(partial, engine))))
        digests = {name: digest for of_rank in written for name, digest in of_rank.items()}
        return world.on_main(told(lambda: _finish(folder, partial, engine, facts, step, finished, digests, seconds)))
    except ValueError:
        if world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def _told(folder: CheckpointFolder, step: int) -> Iterator[None]:
    """What goes wrong in a save, in words for users."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the checkpoint of step {step} can't be written to {folder.root}: {error or type(error).__name__}; "
            "the one before it is whole"
        ) from None


def restore_optimizer(engine: Engine, checkpoint: Path, step: int) -> None:
    """Fill this rank's optimizer state from a checkpoint of any layout.

    Raises:
        ValueError: the checkpoint holds none, or of another optimizer.
    """
    reader = TensorReader(checkpoint)
    _check_optimizer_fits(engine, reader)
    keys = sorted({name.split("/")[1] for name in reader.names(OPTIMIZER_PREFIX)})
    if not keys:
        return
    pieces: dict[int, list[OptimizerPiece]] = {}
    for piece in engine.optimizer_pieces():
        pieces.setdefault(id(piece.key), []).append(piece)
    optimizer = engine.torch_optimizer
    held = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    state = {
        number: {
            # One for each: a fused optimizer counts on in place.
            "step": torch.tensor(float(step)),
            **{key: _state_tensor(reader, key, tensor, pieces.get(id(tensor), [])) for key in keys},
        }
        for number, tensor in enumerate(held)
    }
    # By torch's own rules: what is like a parameter goes beside it, and so does the step of a fused optimizer.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _state_tensor(reader: TensorReader, key: str, like: Tensor, pieces: Sequence[OptimizerPiece]) -> Tensor:
    """The state ``key`` of an optimizer tensor, beside it and of its type; zero where ZeRO pads a partition."""
    state = torch.empty_like(like)
    flat, filled = state.view(-1), 0
    for piece in sorted(pieces, key=lambda piece: piece.start):
        flat[filled : piece.start].zero_()
        filled = piece.start + piece.numel
        reader.read_into(flat[piece.start : filled], f"{OPTIMIZER_PREFIX}{key}/{piece.name}", piece.offset)
    flat[filled:].zero_()
    return state


def _check_optimizer_fits(engine: Engine, reader: TensorReader) -> None:
    """Shapes and types of this rank's part, before any of it is read."""
    keys = {name.split("/")[1] for name in reader.names(OPTIMIZER_PREFIX)}
    reader.check_fits(
        {
            f"{OPTIMIZER_PREFIX}{key}/{piece.name}": torch.empty(piece.shape, dtype=piece.key.dtype, device="meta")
            for key in keys
            for piece in engine.optimizer_pieces()
        }
    )


def _write_tensors(partial: Path, engine: Engine) -> dict[str, str]:
    """The digests of this rank's files, by name; what was just written is read from the system's memory."""
    rank, digests = engine.world.rank, {}
    for kind, pieces in (("model", list(weight_pieces(engine))), ("optimizer", list(_optimizer_pieces(engine)))):
        if pieces:
            file = partial / f"{kind}-{rank:05d}.safetensors"
            write_pieces(file, pieces)
            digests[file.name] = file_digest(file)
    return digests


def weight_pieces(engine: Engine) -> Iterator[TensorSlice]:
    """Experts from the first rank that holds them, everything else (buffers and teacher too) from rank 0."""
    rank = engine.world.rank
    placed = {piece.name: piece for piece in engine.parameters(with_frozen=True)}
    for raw_name, tensor in engine.model.state_dict().items():
        name = fqn(raw_name)
        expert_parallel = name in placed and placed[name].expert_parallel
        if rank >= (engine.ep_size if expert_parallel else 1):
            continue
        if expert_parallel:
            yield TensorSlice(
                name, placed[name].shape, placed[name].offset, tensor.reshape(_piece_shape(placed[name].shape, tensor))
            )
        else:
            yield TensorSlice(name, tuple(tensor.shape), 0, tensor)


def _piece_shape(whole: tuple[int, ...], tensor: Tensor) -> tuple[int, ...]:
    return whole if tensor.numel() == torch.Size(whole).numel() else (tensor.numel(),)


def _optimizer_pieces(engine: Engine) -> Iterator[TensorSlice]:
    for piece in owned_optimizer_pieces(engine):
        for key, value in engine.optimizer_state(piece.key).items():
            if isinstance(value, Tensor) and value.shape == piece.key.shape:
                yield portable_piece(f"{OPTIMIZER_PREFIX}{key}/{piece.name}", piece, value)


def owned_optimizer_pieces(engine: Engine) -> Iterator[OptimizerPiece]:
    """Without ZeRO every replica holds the same state, and the first owns it; with ZeRO each owns its partition."""
    expert_names = {placed.name for placed in engine.parameters() if placed.expert_parallel}
    for piece in engine.optimizer_pieces():
        partitioned = piece.key.dim() == 1 and engine.deepspeed.zero_optimization()
        replicas_start = engine.ep_size if piece.name in expert_names else 1
        if partitioned or engine.world.rank < replicas_start:
            yield piece


def portable_piece(name: str, piece: OptimizerPiece, like_key: Tensor) -> TensorSlice:
    """What a tensor of the form of ``piece.key`` (state, gradient) holds for ``piece``, to be written as ``name``."""
    flat = like_key.reshape(-1)[piece.start : piece.start + piece.numel]
    return TensorSlice(name, piece.shape, piece.offset, flat.reshape(_piece_shape(piece.shape, flat)))


def _finish(
    folder: CheckpointFolder,
    partial: Path,
    engine: Engine,
    facts: RunFacts,
    step: int,
    finished: bool,
    digests: Mapping[str, str],
    seconds: float | None,
) -> Path:
    state = build_state(
        facts.recipe,
        step=step,
        finished=finished,
        backbone_weights=facts.backbone_weights,
        data=facts.data,
        layout=Layout(engine.world.size, engine.ep_size, facts.zero_stage),
        trained_on=facts.trained_on,
        composing=facts.composing,
        fitted=engine.model.describe() if isinstance(engine.model, Fitted) else None,
        seconds=seconds,
        growth=facts.growth,
    )
    write_index_and_state(partial, state, digests)
    return folder.commit(partial, step, facts.recipe.training.keep_checkpoints)
