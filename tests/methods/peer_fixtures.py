"""Reads what the methods' authors' code computes, on weights that anyone can rebuild from names and shapes.

Another folder of the same form is taken from the environment variable UNIMMAD_PEER_FIXTURES.
"""

import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(os.environ.get("UNIMMAD_PEER_FIXTURES", Path(__file__).parents[1] / "fixtures" / "peers"))


@dataclass(frozen=True)
class PeerFixture:
    """One folder: arrays of the authors' code, and the facts of the run."""

    outputs: dict[str, np.ndarray]
    facts: dict[str, Any]

    @classmethod
    def read(cls, name: str) -> "PeerFixture":
        with np.load(FOLDER / name / "official_outputs.npz", allow_pickle=False) as arrays:
            outputs = dict(arrays)
        return cls(outputs, json.loads((FOLDER / name / "official_state.json").read_text()))

    def tensor(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.outputs[name])

    def state(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """The authors' state dict below ``prefix``, without it."""
        seed, shapes = self.facts["seed"], self.facts["shapes"]
        return {
            name.removeprefix(prefix): rebuild(name, shape, seed)
            for name, shape in shapes.items()
            if name.startswith(prefix) and not name.endswith("num_batches_tracked")
        }


def rebuild(name: str, shape: list[int], seed: int) -> torch.Tensor:
    """An entry is a fixed function of its name (with prefix) and shape."""
    r = np.random.default_rng(zlib.crc32(name.encode()) + seed).standard_normal(shape)
    last = name.rpartition(".")[2]
    if last == "running_var":
        value = 1 + 0.1 * np.abs(r)
    elif last in ("running_mean", "bias"):
        value = 0.1 * r
    elif len(shape) == 1:
        value = 1 + 0.1 * r
    elif last == "weight":
        value = r * np.sqrt(2 / np.prod(shape[1:]))
    else:
        value = 0.1 * r
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, share: float = 1e-4) -> None:
    """``ours`` differs by no more than ``share`` of the largest value of ``theirs``."""
    assert ours.shape == theirs.shape
    worst = (ours - theirs).abs().max() / theirs.abs().max()
    assert worst <= share, f"{worst:.2e} of the largest value"
