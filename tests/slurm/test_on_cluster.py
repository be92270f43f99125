"""Jobs on a real SLURM: they train, and what disturbs them costs no step that was saved and changes no weight."""

from __future__ import annotations

import pytest
import torch
from launches import weights
from submitting import submit, trainer_words
from training.crashes import newest_step, whole_checkpoints

STEPS = 8
NODES = ["--nodes", "2", "--gpus-per-node", "0", "--signal-delay-s", "30"]


@pytest.fixture(scope="module")
def undisturbed(cluster, parity_shards, tmp_path_factory):
    """A submission on two nodes that nothing disturbs."""
    output = tmp_path_factory.mktemp("undisturbed") / "run"
    submission = submit(cluster, output, NODES, trainer_words(parity_shards, "--max-steps", str(STEPS)))
    assert submission.end() == 0, submission.everything()
    return submission


def disturbed(cluster, parity_shards, tmp_path, *words):
    trainer = trainer_words(parity_shards, "--max-steps", str(STEPS))
    submission = submit(cluster, tmp_path / "run", [*NODES, *words], trainer)
    submission.until_step(2)
    return submission


def assert_same_weights(submission, undisturbed):
    assert newest_step(submission.output) == STEPS
    ours, theirs = weights(submission.output), weights(undisturbed.output)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_a_submission_trains_on_its_nodes_and_says_where_things_are(undisturbed):
    said = undisturbed.said.read_text()
    job = undisturbed.job_id
    assert f"scancel {job}" in said
    assert f"{job}: completed" in said
    log = (undisturbed.output / "slurm" / f"{job}_0_log.err").read_text()
    assert "ranks 0 unode1, 1 unode2; expert groups of 1 inside nodes" in log
    assert whole_checkpoints(undisturbed.output)[-1] == STEPS


def test_a_preemption_signal_saves_together_requeues_and_changes_nothing(cluster, parity_shards, undisturbed, tmp_path):
    submission = disturbed(cluster, parity_shards, tmp_path)
    cluster.command("scancel", "--signal=USR2", submission.job_id)
    submission.until_restarted()
    saved = newest_step(submission.output)
    assert submission.end() == 0, submission.everything()
    log = (submission.output / "slurm" / f"{submission.job_id}_0_log.err").read_text()
    assert f"step {saved}: asked to stop" in log
    assert f"at step {saved}" in log
    assert_same_weights(submission, undisturbed)
