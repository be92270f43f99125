"""Ctrl-C and kill, for real: the step ends, is saved, and the same command ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from crashes import newest_step, whole_checkpoints
from launches import CONFIGS, SECONDS, TRAIN, command, environment, hear_interrupts, run, weights

RECORDING_TRAIN = Path(__file__).with_name("recording_train.py")
STEPS = 12
SELDOM = ("--set", "training.checkpoint_every=1000", "--set", "training.epochs=100", "--max-steps", str(STEPS))


class Launch:
    """A launcher at a terminal: what it starts in its session gets Ctrl-C with it."""

    def __init__(self, launcher: str, ranks: int, folder: Path, shards: Path, script: Path = RECORDING_TRAIN) -> None:
        self.folder = folder
        argv = [str(script) if word.endswith("train.py") else word for word in command(launcher, ranks)]
        usual = ["--deepspeed_config", str(CONFIGS / "ep1.json"), "--recipe", "tiny", "--data", str(shards)]
        with (folder / "said").open("w") as file:
            self.process = subprocess.Popen(
                [*argv, *usual, *SELDOM],
                cwd=folder,
                env={**environment(), "RECORD_FOLDER": str(folder)},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=hear_interrupts,
            )

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "tiny"

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def until(self, holds: Callable[[], bool], seconds: float = SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, self.said()[-3000:]
            time.sleep(0.02)

    def until_batch(self, number: int) -> None:
        """Until rank 0 takes that batch of its run, and so has ended the step before."""
        record = self.folder / "0.jsonl"
        self.until(lambda: record.is_file() and record.read_text().count("\n") >= number)

    def control_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> int:
        return self.process.wait(SECONDS)


@pytest.fixture(scope="module")
def undisturbed(parity_shards, tmp_path_factory):
    """The weights after all steps, by launcher."""
    known: dict[str, dict[str, torch.Tensor]] = {}

    def of(launcher: str, ranks: int) -> dict[str, torch.Tensor]:
        if launcher not in known:
            launch = Launch(launcher, ranks, tmp_path_factory.mktemp("undisturbed"), parity_shards)
            assert launch.end() == 0, launch.said()[-3000:]
            known[launcher] = weights(launch.run)
        return known[launcher]

    return of


def assert_continues(stopped: Launch, launcher: str, ranks: int, shards: Path, theirs: dict[str, torch.Tensor]) -> None:
    at = newest_step(stopped.run)
    again = Launch(launcher, ranks, stopped.folder, shards)
    assert again.end() == 0, again.said()[-3000:]
    assert f"continuing runs/tiny at step {at}" in again.said()
    ours = weights(again.run)
    assert newest_step(again.run) == STEPS
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)],
)
def test_the_first_signal_saves_and_the_same_command_continues(number, status, parity_shards, undisturbed, tmp_path):
    launch = Launch("python", 1, tmp_path, parity_shards)
    launch.until_batch(3)
    os.killpg(launch.process.pid, number)
    assert launch.end() == status, launch.said()[-3000:]
    said = launch.said()
    assert f"train.py: {number.name}: training saves and stops after this step" in said
    assert said.splitlines()[-1] == "recording_train.py: stopped, and saved; the same command continues"
    assert "Traceback" not in said
    assert 3 <= whole_checkpoints(launch.run)[0] < STEPS
    assert_continues(launch, "python", 1, parity_shards, undisturbed("python", 1))


def test_torchrun_passes_it_on_to_two_ranks(parity_shards, tmp_path):
    launch = Launch("torchrun", 2, tmp_path, parity_shards)
    launch.until_batch(3)
    launch.control_c()
    assert launch.end() != 0
    said = launch.said()
    assert said.count("train.py: SIGINT: training saves and stops after this step") == 1
    assert said.count("train.py: stopped, and saved; the same command continues") == 1
    assert 3 <= whole_checkpoints(launch.run)[0] < STEPS


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_launchers_of_two_ranks_continue_as_if_undisturbed(launcher, parity_shards, undisturbed, tmp_path):
    launch = Launch(launcher, 2, tmp_path, parity_shards)
    launch.until_batch(3)
    launch.control_c()
    launch.end()
    # DeepSpeed's launcher leaves before its ranks.
    launch.until(lambda: "train.py: stopped, and saved; the same command continues" in launch.said())
    assert "at once; " not in launch.said()
    assert 3 <= whole_checkpoints(launch.run)[0] < STEPS
    assert_continues(launch, launcher, 2, parity_shards, undisturbed(launcher, 2))


@pytest.mark.long
def test_the_second_leaves_at_once(parity_shards, tmp_path, monkeypatch):
    monkeypatch.setenv("HOLD_AT_STEP", "2")
    launch = Launch("python", 1, tmp_path, parity_shards)
    launch.until((tmp_path / "0.held").is_file)
    launch.control_c()
    launch.until(lambda: "saves and stops" in launch.said())
    time.sleep(1)
    assert launch.process.poll() is None
    launch.control_c()
    assert launch.process.wait(5) == 130
    assert "train.py: SIGINT: stopped at once" in launch.said()
    assert "Traceback" not in launch.said()
    assert newest_step(launch.run) == 0


def test_before_training_it_is_one_line(parity_shards, tmp_path):
    launch = Launch("python", 1, tmp_path, parity_shards, script=TRAIN)
    maps = Path(f"/proc/{launch.process.pid}/maps")
    launch.until(lambda: "libtorch_python" in maps.read_text())
    launch.control_c()
    assert launch.process.wait(20) == 130
    said = [line for line in launch.said().splitlines() if line]
    assert said == ["train.py: SIGINT before the first step: there is nothing to save"]


@pytest.mark.parametrize(("launcher", "ranks"), [("python", 1), pytest.param("torchrun", 2, marks=pytest.mark.long)])
def test_a_signal_of_any_rank_ends_an_evaluation_on_the_way(parity_shards, tmp_path, monkeypatch, launcher, ranks):
    monkeypatch.setenv("INTERRUPT_EVALUATION", str(ranks - 1))
    monkeypatch.setenv("RECORD_FOLDER", str(tmp_path))
    argv = [str(RECORDING_TRAIN) if word == str(TRAIN) else word for word in command(launcher, ranks)]
    options = ["--recipe", "tiny", "--data", str(parity_shards), "--set", "training.evaluate_every=1"]
    done = run([*argv, "--deepspeed_config", str(CONFIGS / "ep1.json"), *options, "--max-steps", "5"], tmp_path)
    assert done.returncode == (143 if launcher == "python" else 1), done.stderr[-3000:]
    assert done.stderr.count("step 1: asked to stop; unimmad evaluate --checkpoint") == 1
    assert "train.py: stopped, and saved; the same command continues" in done.stderr
    assert newest_step(tmp_path / "runs" / "tiny") == 1
    assert not list(tmp_path.glob("runs/tiny/evaluations/*/report.json"))
