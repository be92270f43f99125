"""What a job remembers: a restart continues its own run, and only that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unimmad.checkpoint.folder import CheckpointFolder
from unimmad.config import load_recipe
from unimmad.launching.failure_notes import first_failure, note_failures
from unimmad.launching.plan import Task
from unimmad.launching.run_record import RunRecord
from unimmad.launching.slurm_commands import JobState
from unimmad.launching.submission import SubmittedJob
from unimmad.launching.watch import verdict
from unimmad.parallel.world import World
from unimmad.ranks.errors import Problem, SharedError
from unimmad.training.arguments import TrainArguments, parse_arguments

ALONE = World(0, 1, 0, torch.device("cpu"))


def asked(folder: Path, *argv: str) -> TrainArguments:
    return parse_arguments(["--recipe", "tiny", "--output-dir", str(folder / "run"), *argv])


def save(run: Path, step: int, finished: bool = False) -> Path:
    folder = CheckpointFolder(run)
    partial = folder.begin(step)
    state = {"recipe": load_recipe("tiny").model_dump(mode="json"), "step": step, "finished": finished}
    (partial / "state.json").write_text(json.dumps(state))
    return folder.commit(partial, step, 5)


def test_a_restart_continues_the_run_that_its_first_start_chose(tmp_path):
    """Even with --resume never, which opens a fresh folder at the first start."""
    save(tmp_path / "run", 3)
    record = RunRecord(tmp_path, "key")
    arguments = asked(tmp_path, "--resume", "never")
    first = record.settle(arguments, ALONE)
    assert (first.output_dir, first.resume) == (tmp_path / "run-2", "auto")
    save(tmp_path / "run-2", 5)
    again = RunRecord(tmp_path, "key").settle(arguments, ALONE)
    assert (again.output_dir, again.resume) == (tmp_path / "run-2", str(tmp_path / "run-2"))
    assert RunRecord(tmp_path, "key").starts() == 2


def test_a_restart_after_the_end_has_nothing_to_do(tmp_path):
    record = RunRecord(tmp_path, "key")
    assert record.settle(asked(tmp_path), ALONE) is not None
    save(tmp_path / "run", 9, finished=True)
    assert record.settle(asked(tmp_path), ALONE) is None
    other = RunRecord(tmp_path, "another").settle(asked(tmp_path), ALONE)
    assert other.output_dir == tmp_path / "run-2", "another submission is another run"


def test_the_verdict_names_the_jobs_own_run_wherever_newer_files_lie(tmp_path):
    """A job of ``--resume never``: neither the first run of the series nor one that is only called alike is its own."""
    job = SubmittedJob("7", "key", Task("run", (), tmp_path / "run", 1), tmp_path, None)
    assert "no checkpoint yet" in verdict(job, JobState("CANCELLED"))
    newest = save(tmp_path / "run", 3)
    assert f"newest checkpoint {newest}, from" in verdict(job, JobState("CANCELLED")), "before its first start"
    RunRecord(tmp_path, "key").settle(asked(tmp_path, "--resume", "never"), ALONE)
    assert "no checkpoint yet" in verdict(job, JobState("CANCELLED"))
    own = save(tmp_path / "run-2", 5)
    for other in ("run", "run-2x"):
        save(tmp_path / other, 8)
    assert verdict(job, JobState("COMPLETED")) == f"7: completed; newest checkpoint {own}"


def test_a_first_start_continues_what_is_there(tmp_path):
    newest = save(tmp_path / "run", 3)
    settled = RunRecord(tmp_path, "key").settle(asked(tmp_path), ALONE)
    assert settled.resume == str(newest)
    with pytest.raises(ValueError, match="is not a checkpoint"):
        RunRecord(tmp_path, "other").settle(asked(tmp_path, "--resume", str(tmp_path / "absent")), ALONE)


def test_of_failures_the_first_after_the_last_restart_counts(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    assert first_failure(tmp_path, "key") is None
    note_failures(tmp_path, "key", 0, 3, RuntimeError("before the restart"))
    note_failures(tmp_path, "key", 1, 2, ValueError("the cause"))
    note_failures(tmp_path, "key", 1, 0, RuntimeError("what followed"))
    note_failures(tmp_path, "key", 1, 1, RuntimeError("Connection closed by peer"))
    failure = first_failure(tmp_path, "key")
    assert (failure.rank, failure.node, failure.message, failure.trace) == (2, "n2", "the cause", "")
    note_failures(tmp_path, "key", 10, 1, RuntimeError("later"))
    assert "RuntimeError: later" in first_failure(tmp_path, "key").trace


def test_a_problem_that_all_ranks_know_is_noted_as_that_of_the_rank_that_met_it(tmp_path):
    error = SharedError([Problem(5, "n7", "no data here", ""), Problem(6, "n7", "no data here", "")], size=8)
    note_failures(tmp_path, "key", 0, 5, error)
    assert first_failure(tmp_path, "key") is None, "rank 0 does it"
    note_failures(tmp_path, "key", 0, 0, error)
    failure = first_failure(tmp_path, "key")
    assert (failure.rank, failure.node, failure.message) == (5, "n7", "no data here")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "can't be read"),
        (b"\xff\xfe", "can't be read"),
        (b"[]", "the file: Input should be a valid dict"),
        (b"{}", "run: Field required"),
        (b'{"run": "x", "starts": "2"}', "starts: Input should be a valid integer"),
        (b'{"run": "x", "starts": -1}', "starts: Input should be greater than"),
        (b'{"run": 5, "starts": 1}', "run: Input should be a valid string"),
    ],
)
def test_a_damaged_record_is_refused_in_one_line(tmp_path, content, says):
    (tmp_path / "key.run.json").write_bytes(content)
    record, message = RunRecord(tmp_path, "key"), rf"key\.run\.json.*{says}.*; remove it to let the job begin again"
    for read in (record.starts, lambda: record.settle(asked(tmp_path), ALONE)):
        with pytest.raises(ValueError, match=message) as refused:
            read()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"rank": 0}', b'{"rank": "a", "node": 5}', b"3"])
def test_a_damaged_note_hides_no_other(tmp_path, caplog, content):
    note_failures(tmp_path, "key", 0, 3, ValueError("the cause"))
    (tmp_path / "key.1.rank00000.failure.json").write_bytes(content)
    (tmp_path / "key.x.rank00000.failure.json").write_bytes(content)
    assert first_failure(tmp_path, "key").message == "the cause"
    assert "key.1.rank00000.failure.json can't be read (" in caplog.text
