"""Jobs on a real SLURM: they train, and what disturbs them costs no step that was saved and changes no weight."""

from __future__ import annotations

from submitting import NODES, STEPS, assert_same_weights, submit, trainer_argv
from training.crashes import newest_step, whole_checkpoints


def test_a_submission_trains_on_its_nodes_and_says_where_things_are(undisturbed):
    said = undisturbed.said.read_text()
    job = undisturbed.job_id
    assert f"scancel {job}" in said
    assert f"{job}: completed" in said
    log = (undisturbed.output / "slurm" / f"{job}_0_log.err").read_text()
    assert "ranks 0 unode1, 1 unode2; expert groups of 1 inside nodes" in log
    assert whole_checkpoints(undisturbed.output)[-1] == STEPS


def test_a_preemption_signal_saves_together_requeues_and_changes_nothing(cluster, parity_shards, undisturbed, tmp_path):
    argv = [*NODES, "--signal-delay-s", "1"]  # short steps: else ranks would not ask before all are done
    submission = submit(cluster, tmp_path / "run", argv, trainer_argv(parity_shards, "--max-steps", str(STEPS)))
    submission.until_step(2)
    cluster.command("scancel", "--signal=USR2", submission.job_id)
    submission.until_restarted()
    saved = newest_step(submission.output)
    assert submission.end() == 0, submission.everything()
    log = (submission.output / "slurm" / f"{submission.job_id}_0_log.err").read_text()
    assert f"step {saved}: asked to stop" in log
    assert f"at step {saved}" in log
    assert_same_weights(submission, undisturbed)
