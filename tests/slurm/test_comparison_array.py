"""A comparison as a job array on a real SLURM: a job for each cell; one fails, one is started again."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from launches import ROOT
from submitting import SECONDS, environment
from training.crashes import newest_step

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

METHODS = ("memory_bank", "rd", "dinomaly")
"""dinomaly's backbone can't take images of 64 pixels."""
SETTINGS = ("--set", "training.checkpoint_every=1", "--set", "training.steps=4")
LAUNCHER = ("--", "--gpus-per-node", "0", "--signal-delay-s", "30")


@pytest.fixture
def typed(cluster, parity_shards, tmp_path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``unimmad compare`` with some words more."""

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        ours = ["--methods", ",".join(METHODS), "--recipe", "tiny", "--data", str(parity_shards), *SETTINGS]
        argv = [
            sys.executable,
            str(ROOT / "tools" / "compare.py"),
            *ours,
            "--output-dir",
            str(tmp_path / "out"),
            *words,
        ]
        env = {**environment(cluster)}
        return subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=SECONDS, check=False)

    return call


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"waited {SECONDS} s for {what}"
        time.sleep(0.2)


def said(out: Path) -> str:
    logs = sorted((out / "slurm").glob("*_log.err"))
    return "\n".join(f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}" for path in logs)


def test_cells_as_jobs_of_which_one_fails_and_one_is_started_again(cluster, typed, tmp_path):
    out = tmp_path / "out"
    submitted = typed("--slurm", *LAUNCHER)
    assert submitted.returncode == 0, submitted.stderr
    jobs = dict(reversed(line.split(": ")) for line in re.findall(r"^job (\S+: \S+)$", submitted.stdout, re.MULTILINE))
    assert list(jobs) == [f"{method}/0" for method in METHODS]
    array = jobs["rd/0"].partition("_")[0]
    assert {job.partition("_")[0] for job in jobs.values()} == {array}

    run = out / "rd" / "seed_0" / "run"
    until(
        lambda: newest_step(run) >= 1 or not cluster.command("squeue", "-h", "-j", array).strip(), "a checkpoint of rd"
    )
    cluster.command("scontrol", "requeue", jobs["rd/0"])
    until(lambda: not cluster.command("squeue", "-h", "-j", array).strip(), "the end of the array")

    table = typed("--table")
    assert table.returncode == 0, table.stderr + said(out)
    with (out / "comparison.csv").open(newline="") as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"memory_bank", "rd"}, said(out)
    text = " ".join(table.stdout.split())
    assert "no result of dinomaly, seed 0: train ended with status 2" in text
    assert "is not a multiple of 14" in text

    again = typed("--slurm", *LAUNCHER)
    assert again.returncode == 0, again.stderr
    assert re.findall(r"^job \S+: (\S+)$", again.stdout, re.MULTILINE) == ["dinomaly/0"], "what is done is left out"
    job = re.findall(r"^job (\S+):", again.stdout, re.MULTILINE)[0]
    until(lambda: not cluster.command("squeue", "-h", "-j", job.partition("_")[0]).strip(), "its end")


def test_what_slurm_would_refuse_is_one_line(typed, tmp_path):
    refused = typed("--slurm", *LAUNCHER, "--partition", "gone")
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert "--partition gone: SLURM has no such partition, but debug, urgent" in refused.stderr
    assert not (tmp_path / "out" / "rd").exists()
