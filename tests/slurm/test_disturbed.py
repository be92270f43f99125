"""Everything that ends a job on a cluster, for real: the final weights are those of an undisturbed run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from launches import CONFIGS, weights
from submitting import (
    LAUNCH,
    NODES,
    SECONDS,
    STEPS,
    assert_same_weights,
    environment,
    on_nodes,
    submit,
    trainer_argv,
)
from training.crashes import newest_step

from unimmad.checkpoint.folder import find_checkpoint, read_state

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture
def slowly(cluster, parity_shards, tmp_path):
    """Starts a training of slow steps, and returns once it has saved some."""

    def start(*argv, seconds=1, until_step=2):
        trainer = trainer_argv(parity_shards, "--max-steps", str(STEPS))
        submission = submit(cluster, tmp_path / "run", [*NODES, *on_nodes(STEP_SECONDS=seconds), *argv], trainer)
        if until_step:
            submission.until_step(until_step)
        return submission

    return start


def test_requeued_from_outside(cluster, slowly, undisturbed):
    submission = slowly()
    cluster.command("scontrol", "requeue", submission.job_id)
    assert submission.end() == 0, submission.everything()
    assert "restart 1" in submission.said.read_text()
    assert_same_weights(submission, undisturbed)


def test_preempted_by_an_urgent_job(cluster, slowly, undisturbed):
    submission = slowly(seconds=2)
    urgent = ["--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 3"]
    cluster.command("sbatch", *urgent)
    submission.until_restarted()
    saved = newest_step(submission.output)
    assert submission.end() == 0, submission.everything()
    log = (submission.output / "slurm" / f"{submission.job_id}_0_log.err").read_text()
    assert f"step {saved}: asked to stop" in log
    assert_same_weights(submission, undisturbed)


def test_time_limit(slowly, undisturbed):
    """SLURM warns up to a minute early: 30 to 90 s after the start of a job that needs 100 s."""
    submission = slowly("--timeout-min", "2", seconds=12, until_step=0)
    assert submission.end() == 0, submission.everything()
    log = (submission.output / "slurm" / f"{submission.job_id}_0_log.err").read_text()
    assert "asked to stop" in log
    assert "start 2 of job" in log
    assert_same_weights(submission, undisturbed)


def test_a_node_dies(cluster, slowly, undisturbed):
    submission = slowly()
    cluster.fail_node("unode2")
    try:
        assert submission.end() == 0, submission.everything()
    finally:
        cluster.revive_node("unode2")
    log = (submission.output / "slurm" / f"{submission.job_id}_0_log.err").read_text()
    assert "start 2 of job" in log
    assert "unode3" in log
    assert_same_weights(submission, undisturbed)


def test_cancelled_and_submitted_again(cluster, slowly, undisturbed):
    submission = slowly()
    cluster.command("scancel", submission.job_id)
    assert submission.end() == 1
    assert "was cancelled; newest checkpoint" in submission.said.read_text()
    again = slowly(seconds=0, until_step=0)
    assert again.end() == 0, again.everything()
    assert_same_weights(again, undisturbed)


def test_a_rank_that_raises_ends_the_job_with_its_own_traceback(slowly):
    submission = slowly(*on_nodes(FAILING_RANK=1), until_step=0)
    assert submission.end() == 1
    said = submission.said.read_text()
    assert "rank 1 on unode2 failed: RuntimeError('the fault of the test')" in said
    assert "in disturbed" in said
    assert "lost another rank" not in said
    assert newest_step(submission.output) == 1


def test_requeues_have_an_end(cluster, slowly):
    submission = slowly("--max-requeues", "1")
    cluster.command("scancel", "--signal=USR2", submission.job_id)
    submission.until_restarted()
    before = newest_step(submission.output)
    submission.until_step(before + 1)
    cluster.command("scancel", "--signal=USR2", submission.job_id)
    assert submission.end() == 1
    assert "not requeued: --max-requeues 1 is used up" in submission.said.read_text()
    assert newest_step(submission.output) > before


def test_other_nodes_continue_and_expert_groups_stay_inside_them(cluster, parity_shards, tmp_path):
    one = submit(cluster, tmp_path / "run", ["--gpus-per-node", "0"], trainer_argv(parity_shards, "--max-steps", "2"))
    assert one.end() == 0, one.everything()
    config = tmp_path / "ep2.json"
    config.write_text(json.dumps({"unimmad": {"ep_size": 2}, "zero_optimization": {"stage": 1}}))
    more = trainer_argv(parity_shards, "--max-steps", "4", "--deepspeed_config", str(config))
    two = submit(cluster, tmp_path / "run", [*NODES, "--tasks-per-node", "2"], more)
    assert two.end() == 0, two.everything()
    log = (two.output / "slurm" / f"{two.job_id}_0_log.err").read_text()
    assert "ranks 0-1 unode1, 2-3 unode2; expert groups of 2 inside nodes" in log
    assert "at step 2" in log
    state = read_state(find_checkpoint(two.output))
    assert state["step"] == 4
    assert state["layout"] == {"world_size": 4, "ep_size": 2, "zero_stage": 1}


def test_sweep_is_a_job_array_with_a_table(cluster, parity_shards, tmp_path):
    argv = ["--gpus-per-node", "0", "--sweep", "model.leaders=4,8"]
    sweep = submit(cluster, tmp_path / "sweep", argv, trainer_argv(parity_shards, "--max-steps", "2"))
    assert sweep.end() == 0, sweep.everything()
    table = (sweep.output / "sweep.md").read_text()
    for number, leaders in enumerate((4, 8)):
        row = next(line for line in table.splitlines() if f"model.leaders={leaders}" in line)
        assert f"| {sweep.job_id}_{number} | completed | 2 |" in row
        state = read_state(find_checkpoint(sweep.output / f"model.leaders={leaders}"))
        assert state["recipe"]["model"]["leaders"] == leaders
    assert weights(sweep.output / "model.leaders=4").keys() == weights(sweep.output / "model.leaders=8").keys()


def test_a_log_that_a_node_cannot_write(cluster, parity_shards, tmp_path):
    elsewhere = ["--slurm-arg", "output=/nowhere/log", "--slurm-arg", "error=/nowhere/log"]
    submission = submit(cluster, tmp_path / "run", [*NODES, *elsewhere], trainer_argv(parity_shards))
    assert submission.end() == 1
    assert "on a file system that all nodes mount" in submission.said.read_text()


def test_no_srun_on_the_nodes(cluster, parity_shards, tmp_path):
    argv = [*NODES, "--setup", "export PATH=/nothing"]
    submission = submit(cluster, tmp_path / "run", argv, trainer_argv(parity_shards))
    assert submission.end() == 1
    assert "no srun on compute node unode1" in submission.said.read_text()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--partition", "gone"], "--partition gone: SLURM has no such partition, but debug, urgent"),
        (["--nodes", "9"], "--nodes 9: partition debug has 4"),
        (["--gpus-per-node", "2"], "a node of partition debug has at most 0"),
        (["--dependency", "nonsense"], "SLURM refuses the job"),
    ],
)
def test_what_slurm_would_refuse(cluster, parity_shards, tmp_path, argv, said):
    trainer = trainer_argv(parity_shards, "--deepspeed_config", str(CONFIGS / "ep1.json"))
    ours = [sys.executable, str(LAUNCH), "--output-dir", str(tmp_path / "run"), *argv, *trainer]
    done = subprocess.run(
        ours, env=environment(cluster), cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
