"""Starts the real commands as a user would, in a folder of their own; used by tests that launch training."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import torch

from unimmad.checkpoint.folder import find_checkpoint
from unimmad.checkpoint.tensor_slices import TensorReader

ROOT = Path(__file__).parents[1]
TRAIN = ROOT / "unimmad" / "train.py"
EVALUATE = ROOT / "tools" / "evaluate.py"
CONFIGS = ROOT / "ds_configs"
SECONDS = 240
WITHOUT_GRADIENT = ("input_embedding.stem.0.bias", "input_embedding.stem.3.bias")
"""Biases before a BatchNorm: their true gradient is zero, and what is computed is rounding."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(launcher: str, ranks: int = 1, program: Path = TRAIN) -> list[str]:
    """The words before the program's own (the trainer's): ``python``, ``torchrun`` or ``deepspeed``."""
    programs = Path(sys.executable).parent
    if launcher == "python":
        return [sys.executable, str(program)]
    if launcher == "torchrun":
        port = str(free_port())
        return [str(programs / "torchrun"), "--nproc-per-node", str(ranks), "--master-port", port, str(program)]
    argv = [str(programs / "deepspeed"), "--master_port", str(free_port())]
    return [*argv, *(["--num_accelerators", str(ranks)] if ranks > 1 else []), str(program)]


def environment() -> dict[str, str]:
    """This one, where the launchers find their programs and decide on threads themselves."""
    ours = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ours.pop("OMP_NUM_THREADS", None)
    return ours


def hear_interrupts() -> None:
    """For a new process: a shell without job control has what it starts in the background, these tests, ignore them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(
    argv: list[str], folder: Path, seconds: float = SECONDS, threads: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Wait for a command; one that takes longer is ended with all that it started. ``threads``: of each process."""
    with subprocess.Popen(
        argv,
        cwd=folder,
        env=environment() | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(argv, process.returncode, output, errors)


def train(
    folder: Path,
    *argv: str,
    launcher: str = "python",
    ranks: int = 1,
    config: str = "ep1.json",
    seconds: float = SECONDS,
) -> str:
    """Train the tiny recipe; returns what was printed to standard error."""
    words_before = [*command(launcher, ranks), "--deepspeed_config", str(CONFIGS / config), "--recipe", "tiny"]
    done = run([*words_before, *argv], folder, seconds)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    return done.stderr


def evaluate(folder: Path, *argv: str, launcher: str = "python", ranks: int = 1, threads: int = 1) -> str:
    """Evaluate as the words say; returns what was printed. Several ranks choose their threads themselves."""
    done = run([*command(launcher, ranks, EVALUATE), *argv], folder, threads=threads if ranks == 1 else None)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    return done.stdout + done.stderr


def threads_of(ranks: int) -> int:
    """Of each rank, where they share this machine: a CPU's numbers depend on it in the last bits."""
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder by their path in it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor (weights and optimizer state) of a run's newest checkpoint, by portable name."""
    reader = TensorReader(find_checkpoint(run_folder))
    return {name: reader.read(name) for name in reader.names()}


def largest_difference(
    ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor], start: dict[str, torch.Tensor]
) -> tuple[float, str]:
    """Of two runs from the same ``start``: difference of their weights over the reference's way from the start.

    The worst tensor, and its name; floor 1e-6 of the longest way. Optimizer state and running statistics do not count.
    """
    trained = [name for name in reference if not name.startswith("optimizer/") and "running_" not in name]
    names = [name for name in trained if reference[name].is_floating_point() and name not in WITHOUT_GRADIENT]
    way = {name: float((reference[name].double() - start[name].double()).norm()) for name in names}
    floor = 1e-6 * max(way.values())
    return max(
        (float((ours[name].double() - reference[name].double()).norm()) / max(way[name], floor), name) for name in names
    )
