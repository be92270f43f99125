"""Without SLURM the same command trains on this machine: two ranks, stopped by the same signal, started again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import psutil
from launches import ROOT, environment
from submitting import LAUNCH, SECONDS, trainer_argv
from training.crashes import newest_step, whole_checkpoints

from unimmad.checkpoint.folder import find_checkpoint, read_state


def test_two_ranks_saved_together_and_started_again(parity_shards, tmp_path):
    argv = ["--cluster", "local", "--tasks-per-node", "2", "--follow", "--output-dir", str(tmp_path / "run")]
    argv += ["--signal-delay-s", "1"]  # short steps: else ranks would not ask before all five are done
    ours = [sys.executable, str(LAUNCH), *argv, *trainer_argv(parity_shards, "--max-steps", "5")]
    said = tmp_path / "said"
    with said.open("w") as file:
        process = subprocess.Popen(
            ours, cwd=tmp_path, env={**environment(), "PYTHONPATH": str(ROOT)}, stdout=file, stderr=subprocess.STDOUT
        )
    deadline = time.monotonic() + SECONDS
    while newest_step(tmp_path / "run") < 1:
        assert process.poll() is None, said.read_text()
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.05)
    for rank in ranks_of(said.read_text()):
        os.kill(rank, signal.SIGUSR2)
    assert process.wait(SECONDS) == 0, said.read_text()
    text = said.read_text()
    assert "asked to stop" in text
    assert "start 2 of job" in text
    assert "completed" in text
    assert whole_checkpoints(tmp_path / "run")[-1] == 5
    assert read_state(find_checkpoint(tmp_path / "run"))["layout"]["world_size"] == 2


def ranks_of(said: str) -> list[int]:
    """The processes that submitit's local controller, whose number is the job's, started."""
    controller = int(re.search(r"^job (\d+):", said, re.MULTILINE)[1])
    return [child.pid for child in psutil.Process(controller).children()]
