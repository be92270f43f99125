"""What a run of a problem gives, as files that any number of ranks write and one process reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from unimmad.checkpoint.tensor_slices import INDEX_NAME, TensorReader, TensorSlice, build_index, write_pieces
from unimmad.model.unimmad import Reconstruction

GRADIENTS, WEIGHTS = "gradients", "weights"


@dataclass(frozen=True)
class Facts:
    """Numbers of a run beside its tensors."""

    losses: list[float]
    """Of each step's first micro-batch, over the global batch."""
    gradient_norm: float
    """Of the whole gradient of the first step, before it is clipped, as the log shows it."""
    dispatched: int = 0
    routed: int = 0
    """Bytes, of all ranks and steps."""
    replicas_equal: bool = True


@dataclass(frozen=True)
class Record:
    """A finished run."""

    facts: Facts
    routing: list[np.ndarray]
    """Of each micro-batch: leaders [gates, tokens, K], tokens of all ranks in the global order."""
    margin: float
    """The smallest relative distance of any token's K-th and next leader's probability, in the first micro-batch."""
    gradients: dict[str, Tensor]
    """Of the first step, as the optimizer got them."""
    weights: dict[str, Tensor]
    """After the last step."""


def leaders_of(output: Reconstruction) -> np.ndarray:
    return np.stack([routing.leaders_TK.cpu().numpy() for branches in output.routings for routing in branches])


def margin_of(output: Reconstruction) -> float:
    """Relative to the K-th probability."""
    margins = []
    for branches in output.routings:
        for routing in branches:
            k = routing.leaders_TK.shape[1]
            top = routing.probabilities_TL.detach().topk(k + 1, dim=1).values
            margins.append(float(((top[:, k - 1] - top[:, k]) / top[:, k - 1]).min()))
    return min(margins)


def write_rank(
    folder: Path,
    rank: int,
    *,
    gradients: Iterable[TensorSlice],
    weights: Iterable[TensorSlice],
    routing: list[np.ndarray],
    margin: float,
    facts: Facts,
) -> None:
    for name, pieces in ((GRADIENTS, list(gradients)), (WEIGHTS, list(weights))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        if pieces:
            write_pieces(folder / name / f"{rank:05d}.safetensors", pieces)
    arrays = {f"step{step:03d}": leaders for step, leaders in enumerate(routing)}
    np.savez(folder / f"routing{rank:05d}.npz", margin=np.array(margin), **arrays)
    (folder / f"facts{rank:05d}.json").write_text(json.dumps(asdict(facts)))


def read_record(folder: Path) -> Record:
    ranks = sorted(folder.glob("routing*.npz"))
    parts = [dict(np.load(path, allow_pickle=False)) for path in ranks]
    steps = sorted(name for name in parts[0] if name.startswith("step"))
    facts = [Facts(**json.loads(path.read_text())) for path in sorted(folder.glob("facts*.json"))]
    return Record(
        facts=Facts(
            losses=facts[0].losses,
            gradient_norm=facts[0].gradient_norm,
            dispatched=sum(fact.dispatched for fact in facts),
            routed=sum(fact.routed for fact in facts),
            replicas_equal=all(fact.replicas_equal for fact in facts),
        ),
        routing=[np.concatenate([part[step] for part in parts], axis=1) for step in steps],
        margin=min(float(part["margin"]) for part in parts),
        gradients=_read_tensors(folder / GRADIENTS),
        weights=_read_tensors(folder / WEIGHTS),
    )


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    (folder / INDEX_NAME).write_text(json.dumps(build_index(folder)))
    reader = TensorReader(folder)
    return {name: reader.read(name) for name in reader.names()}


def floating(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items() if torch.is_floating_point(tensor)}
