"""Runs that are killed, fail or meet a full disk: nothing is lost but the steps since the last checkpoint."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from crashes import kill_all, newest_step, start, training_ranks, wait_for_step, whole_checkpoints
from launches import CONFIGS, command, environment, run, train, weights

from unimmad.data.index import load_index
from unimmad.parallel.world import World
from unimmad.serialization.atomic_write import host_name
from unimmad.training.arguments import parse_arguments
from unimmad.training.run import train as run_training
from unimmad.training.run_folder import LOCK_NAME

RANKS = 2
EVERY_STEP = ("--set", "training.checkpoint_every=1", "--set", "training.epochs=100")
ENDS_WITHIN = 60
"""Seconds from a fault to the end of the job."""
FAILING_TRAIN = Path(__file__).with_name("failing_train.py")


@pytest.fixture(scope="module")
def data(parity_shards) -> tuple[str, ...]:
    return ("--data", str(parity_shards), *EVERY_STEP)


def second_is_refused(run_folder: Path, data: tuple[str, ...], first: subprocess.Popen[bytes]) -> None:
    """A training of this process into the folder of another that goes on."""
    argv = [
        "--recipe",
        "tiny",
        "--deepspeed_config",
        str(CONFIGS / "ep1.json"),
        "--output-dir",
        str(run_folder),
        *data,
    ]
    holder = training_ranks(first)[0].pid
    with pytest.raises(ValueError, match=rf"{LOCK_NAME} is held by process {holder} on {host_name()} since .*; wait"):
        run_training(parse_arguments(argv), World(0, 1, 0, torch.device("cpu")))
    assert first.poll() is None


def killed_and_resumed(data, folder: Path, kills: int) -> None:
    run_folder = folder / "runs" / "tiny"
    chance = random.Random(kills)
    for _ in range(kills):
        before = newest_step(run_folder)
        process = start(folder, *data, ranks=RANKS)
        wait_for_step(run_folder, before + 1, process)
        second_is_refused(run_folder, data, process)
        # Long enough for a step and its save, so that kills fall into either.
        time.sleep(chance.uniform(0, 1.5))
        kill_all(process)
        steps = whole_checkpoints(run_folder)
        assert newest_step(run_folder) in steps
        assert newest_step(run_folder) > before
        assert len(steps) <= 3, "two are kept; a third while one takes the other's place"
    end = str(newest_step(run_folder) + 2)
    said = train(folder, *data, "--max-steps", end, launcher="deepspeed", ranks=RANKS, config="ep4.json")
    assert "continuing" in said
    assert f"{run_folder.relative_to(folder) / LOCK_NAME} was left by process " in said
    assert not (run_folder / LOCK_NAME).exists()
    assert len(whole_checkpoints(run_folder)) == 2
    assert not list((run_folder / "checkpoints").glob(".*"))
    undisturbed = folder / "undisturbed"
    undisturbed.mkdir()
    few = ("--set", "training.checkpoint_every=1000", "--max-steps", end)
    train(undisturbed, *data, *few, launcher="deepspeed", ranks=RANKS, config="ep4.json")
    ours, theirs = weights(run_folder), weights(undisturbed / "runs" / "tiny")
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


def test_killed_at_random_moments_it_ends_as_if_undisturbed(data, tmp_path):
    killed_and_resumed(data, tmp_path, kills=2)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_twenty_times_it_ends_as_if_undisturbed(data, tmp_path):
    killed_and_resumed(data, tmp_path, kills=20)


@pytest.mark.long
@pytest.mark.parametrize("rank", range(RANKS))
def test_a_rank_that_is_stopped_for_a_minute_delays_the_others_and_no_more(data, tmp_path, rank):
    """Longer than a lock's heartbeat may be away on another machine; the holder still lives on this one."""
    run_folder = tmp_path / "runs" / "tiny"
    process = start(tmp_path, *data, "--max-steps", "40", ranks=RANKS)
    wait_for_step(run_folder, 1, process)
    stopped = training_ranks(process)[rank]
    stopped.suspend()
    time.sleep(5)  # a step that had all it needed may end
    before = newest_step(run_folder)
    time.sleep(60)
    assert process.poll() is None
    assert newest_step(run_folder) == before
    stopped.resume()
    assert process.wait(240) == 0
    assert whole_checkpoints(run_folder)[-1] == 40


def test_one_rank_killed_ends_the_job(data, tmp_path):
    process = start(tmp_path, *data, ranks=RANKS)
    wait_for_step(tmp_path / "runs" / "tiny", 1, process)
    training_ranks(process)[1].kill()
    assert process.wait(ENDS_WITHIN) != 0
    assert whole_checkpoints(tmp_path / "runs" / "tiny")


def test_a_rank_that_raises_ends_the_job_with_its_traceback_first(data, tmp_path):
    argv = [str(FAILING_TRAIN) if word.endswith("train.py") else word for word in command("deepspeed", RANKS)]
    started = time.monotonic()
    done = subprocess.run(
        [*argv, "--deepspeed_config", str(CONFIGS / "ep4.json"), "--recipe", "tiny", *data],
        cwd=tmp_path,
        env={**environment(), "FAILING_RANK": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=ENDS_WITHIN + 60,
    )
    assert done.returncode != 0
    assert time.monotonic() - started < ENDS_WITHIN + 60
    first = done.stderr.index("Traceback")
    assert done.stderr[first:].count("Traceback") == 1, "the other rank only says that it lost one"
    assert "RuntimeError: the fault of the test" in done.stderr[first:]
    assert f"train.py: rank 1 ({host_name()}) failed: RuntimeError('the fault of the test')" in done.stderr
    assert whole_checkpoints(tmp_path / "runs" / "tiny") == [1]


def test_a_loss_that_explodes_names_step_classes_and_the_last_good_checkpoint(data, tmp_path):
    """By the largest learning rate and loss weights that there are."""
    weights_of = (f"data.dataset_weights.{name}=1e6" for name in load_index(Path(data[1])).datasets)
    settings = ("training.optimizer=sgd", "training.learning_rate=100", "training.log_every=50", *weights_of)
    wild = tuple(word for setting in settings for word in ("--set", setting))
    seldom = ("--set", "training.checkpoint_every=4")
    argv = [*command("deepspeed", RANKS), "--deepspeed_config", str(CONFIGS / "ep1.json"), "--recipe", "tiny"]
    good = run([*argv, *data, *wild, *seldom, "--set", "training.learning_rate=1e-12", "--max-steps", "4"], tmp_path)
    assert good.returncode == 0, good.stderr[-2000:]
    done = run([*argv, *data, *wild, *seldom, "--output-dir", "wild"], tmp_path)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    assert len(said) == 1, "only rank 0 speaks"
    assert "the loss of step 2 is not finite (classes in its batch: " in said[0]
    assert said[0].count("/") >= 2
    assert "the last good checkpoint is none" in said[0]
    assert not list((tmp_path / "wild" / "checkpoints").glob("step_*"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for one checkpoint of the tiny recipe, but not for two."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=90m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("a small file system can't be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs mount")
def test_a_full_disk_is_said_and_the_checkpoint_before_stays_whole(data, small_disk, tmp_path):
    argv = [*command("deepspeed", RANKS), "--deepspeed_config", str(CONFIGS / "ep1.json"), "--recipe", "tiny"]
    done = run([*argv, *data, "--output-dir", str(small_disk / "run"), "--max-steps", "3"], tmp_path)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    assert len(said) == 1
    assert "the checkpoint of step 2 can't be written" in said[0]
    assert "No space left on device" in said[0]
    assert whole_checkpoints(small_disk / "run") == [1]
    assert not list((small_disk / "run" / "checkpoints").glob(".*"))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        pytest.param("ep8.json", "using 2", marks=pytest.mark.long),
        pytest.param("zero2_offload.json", "", marks=pytest.mark.long),
        ("bf16.json", ""),
    ],
)
def test_every_shipped_configuration_runs_as_far_as_a_cpu_can(config, said, data, tmp_path):
    argv = (*data, "--max-steps", "2")
    heard = train(tmp_path, *argv, launcher="deepspeed", ranks=RANKS, config=config)
    assert heard.count("does not fit") == (1 if said else 0)
    assert said in heard
    assert whole_checkpoints(tmp_path / "runs" / "tiny") == [1, 2]
    moments = [name for name in weights(tmp_path / "runs" / "tiny") if name.startswith("optimizer/exp_avg_sq/")]
    assert moments


def test_zero_3_is_refused_before_anything_is_built(data, tmp_path):
    config = tmp_path / "zero3.json"
    config.write_text('{"zero_optimization": {"stage": 3}}')
    done = run([sys.executable, str(command("python")[1]), "--deepspeed_config", str(config), *data], tmp_path)
    assert done.returncode == 2
    assert "ZeRO stage 3 does not work with DeepSpeed's MoE layers; use stage 2" in done.stderr
    assert not (tmp_path / "runs").exists()
