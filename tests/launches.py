"""Starts the real commands as a user would, in a folder of their own; used by tests that launch training."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import torch

from unimmad.checkpoint.folder import find_checkpoint
from unimmad.checkpoint.pieces import PieceReader

ROOT = Path(__file__).parents[1]
TRAIN = ROOT / "unimmad" / "train.py"
CONFIGS = ROOT / "ds_configs"
SECONDS = 240


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(launcher: str, ranks: int = 1) -> list[str]:
    """The words before the trainer's own: ``python``, ``torchrun`` or ``deepspeed``."""
    programs = Path(sys.executable).parent
    if launcher == "python":
        return [sys.executable, str(TRAIN)]
    if launcher == "torchrun":
        port = str(free_port())
        return [str(programs / "torchrun"), "--nproc-per-node", str(ranks), "--master-port", port, str(TRAIN)]
    words = [str(programs / "deepspeed"), "--master_port", str(free_port())]
    return [*words, *(["--num_accelerators", str(ranks)] if ranks > 1 else []), str(TRAIN)]


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("OMP_NUM_THREADS", None)
    return subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def train(folder: Path, *words: str, launcher: str = "python", ranks: int = 1, config: str = "ep1.json") -> str:
    """Train the tiny recipe; returns what was printed to standard error."""
    words_before = [*command(launcher, ranks), "--deepspeed_config", str(CONFIGS / config), "--recipe", "tiny"]
    done = run([*words_before, *words], folder)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    return done.stderr


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor (weights and optimizer state) of a run's newest checkpoint, by portable name."""
    reader = PieceReader(find_checkpoint(run_folder))
    return {name: reader.read(name) for name in reader.names()}


def largest_difference(ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> tuple[float, str]:
    """Norm of the difference over norm of the reference, the worst tensor; floor 1e-6 of the largest norm."""
    assert ours.keys() == reference.keys()
    floor = 1e-6 * max(float(tensor.double().norm()) for tensor in reference.values())
    return max(
        (float((ours[name].double() - tensor.double()).norm()) / max(float(tensor.double().norm()), floor), name)
        for name, tensor in reference.items()
    )
