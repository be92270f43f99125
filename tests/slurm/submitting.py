"""Submits the tiny recipe to a test cluster, as a user would; used by tests."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from cluster import LocalCluster
from launches import CONFIGS, ROOT, weights
from training.crashes import newest_step

LAUNCH = ROOT / "slurm" / "launch.py"
SECONDS = 600
STEPS = 8
"""Of a whole test run."""
NODES = ("--nodes", "2", "--gpus-per-node", "0", "--signal-delay-s", "30")
ON_NODES = Path(__file__).parent / "on_nodes"
SMALL = ("--set", "training.checkpoint_every=1", "--set", "training.epochs=100")


@dataclass
class Submission:
    """A launcher that waits for its job."""

    cluster: LocalCluster
    output: Path
    process: subprocess.Popen[str]
    said: Path

    @property
    def job_id(self) -> str:
        found: list[str] = []

        def submitted() -> bool:
            found[:] = re.findall(r"^job (\d+)[_ :(]", self.said.read_text(), re.MULTILINE)
            return bool(found)

        self.until(submitted, "the job id")
        return found[0]

    def until(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not holds():
            assert self.process.poll() is None, f"ended before {what}: {self.everything()}"
            assert time.monotonic() < deadline, f"waited {SECONDS} s for {what}: {self.everything()}"
            time.sleep(0.05)

    def until_step(self, step: int) -> None:
        self.until(lambda: newest_step(self.output) >= step, f"a checkpoint of step {step}")

    def until_restarted(self, restarts: int = 1) -> None:
        def restarted() -> bool:
            job = self.cluster.job(self.job_id)
            return int(job["Restarts"]) >= restarts and job["JobState"] == "RUNNING"

        self.until(restarted, f"restart {restarts}")

    def end(self) -> int:
        """The launcher's exit status."""
        return self.process.wait(SECONDS)

    def everything(self) -> str:
        logs = sorted((self.output / "slurm").glob("*_log.err"))
        parts = [f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in (self.said, *logs)]
        return "\n".join(parts)


def assert_same_weights(submission: Submission, undisturbed: Submission) -> None:
    """Bit for bit, optimizer state included, after the whole run."""
    assert newest_step(submission.output) == STEPS
    ours, theirs = weights(submission.output), weights(undisturbed.output)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def trainer_argv(shards: Path, *argv: str) -> list[str]:
    config = ["--deepspeed_config", str(CONFIGS / "ep1.json")]
    return ["--", "--recipe", "tiny", *config, "--data", str(shards), *SMALL, *argv]


def submit(cluster: LocalCluster, output: Path, argv: Sequence[str], trainer: Sequence[str]) -> Submission:
    """Start the launcher in the background; it waits for its job."""
    output.parent.mkdir(parents=True, exist_ok=True)
    said = output.parent / f"{output.name}.said"
    ours = [sys.executable, str(LAUNCH), "--wait", "--output-dir", str(output), *argv, *trainer]
    with said.open("w") as file:
        process = subprocess.Popen(
            ours, cwd=output.parent, env=environment(cluster), stdout=file, stderr=subprocess.STDOUT, text=True
        )
    return Submission(cluster, output, process, said)


def on_nodes(**settings: object) -> list[str]:
    """Options with which ``on_nodes/sitecustomize.py`` takes hold of every task."""
    exports = " ".join(f"TEST_{name}={value}" for name, value in settings.items())
    return ["--setup", f"export PYTHONPATH={ON_NODES}:$PYTHONPATH {exports}"]


def environment(cluster: LocalCluster) -> dict[str, str]:
    inherited = cluster.environment
    path = f"{ROOT}:{inherited['PYTHONPATH']}" if inherited.get("PYTHONPATH") else str(ROOT)
    # Nodes share this machine's cores; as many threads in every run make results equal bit for bit.
    return {**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
