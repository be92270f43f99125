"""Starts training runs and kills them; used by tests."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import psutil
from launches import CONFIGS, command, environment

from unimmad.checkpoint.folder import CheckpointFolder, read_state
from unimmad.checkpoint.tensor_slices import TensorReader

SECONDS = 120


def start(folder: Path, *argv: str, ranks: int, config: str = "ep4.json") -> subprocess.Popen[bytes]:
    """Train the tiny recipe in the background; what it says goes to ``folder/said.txt``."""
    words_before = [*command("deepspeed", ranks), "--deepspeed_config", str(CONFIGS / config), "--recipe", "tiny"]
    with (folder / "said.txt").open("ab") as said:
        return subprocess.Popen(
            [*words_before, *argv], cwd=folder, env=environment(), stdout=said, stderr=subprocess.STDOUT
        )


def training_ranks(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The launcher's ranks, by number."""
    ranks = [child for child in psutil.Process(process.pid).children(recursive=True) if _is_rank(child)]
    return sorted(ranks, key=lambda rank: int(rank.environ()["RANK"]))


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to launcher, ranks and their loader processes, at once."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    psutil.wait_procs(family, timeout=SECONDS)
    process.wait(SECONDS)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    """Until the newest checkpoint is of ``step`` or later."""
    deadline = time.monotonic() + SECONDS
    while newest_step(run) < step:
        assert process.poll() is None, (run.parents[1] / "said.txt").read_text()[-3000:]
        assert time.monotonic() < deadline, f"no checkpoint of step {step} in {SECONDS} s"
        time.sleep(0.02)


def newest_step(run: Path) -> int:
    newest = CheckpointFolder(run).newest()
    return 0 if newest is None else int(newest.name.removeprefix("step_"))


def whole_checkpoints(run: Path) -> list[int]:
    """Steps of all checkpoints in sight, every tensor of each read."""
    steps = []
    for path in sorted((run / "checkpoints").glob("step_*")):
        reader = TensorReader(path)
        for name in reader.names():
            reader.read(name)
        steps.append(int(read_state(path)["step"]))
    return steps


def _is_rank(process: psutil.Process) -> bool:
    argv = process.cmdline()
    # Loader workers and the launcher have the rank's environment or its words, but not both.
    return any(word.endswith("train.py") for word in argv) and any(word.startswith("--local_rank") for word in argv)
