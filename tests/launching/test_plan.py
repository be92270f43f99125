"""What a submission is decided to be, and the batch script that comes of it."""

from __future__ import annotations

import sys

import pytest
from launches import ROOT
from launching.fake_slurm import install

from unimmad.cli.launch import main
from unimmad.launching.options import parse_options
from unimmad.launching.plan import describe, make_plan
from unimmad.launching.submission import batch_script

TINY = ["--", "--recipe", "tiny"]


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A SLURM with partitions cpu (the default) and gpu; the folder is the project's."""
    install(tmp_path / "bin", monkeypatch)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["launch.py"])
    return tmp_path / "out"


def plan_of(out, *argv, trainer=TINY):
    return make_plan(parse_options([*argv, "--output-dir", str(out), *trainer]))


def test_only_what_was_said_reaches_slurm(slurm):
    script = batch_script(plan_of(slurm, "--nodes", "2"))
    flags = {line.split("=")[0] for line in script.splitlines() if line.startswith("#SBATCH")}
    ours = {"nodes", "ntasks-per-node", "job-name", "output", "error", "open-mode", "signal", "requeue"}
    assert flags == {f"#SBATCH --{name}" for name in ours}
    assert "--kill-on-bad-exit=1" in script


def test_everything_said_reaches_slurm(slurm):
    placed = ["account", "qos", "constraint", "exclude", "nodelist", "reservation", "comment", "dependency"]
    argv = [word for name in placed for word in (f"--{name}", f"my-{name}")]
    argv += ["--partition", "gpu", "--name", "n", "--mail-user", "me", "--cpus-per-task", "3", "--mem-gb", "1.5"]
    argv += ["--timeout-min", "90", "--signal-delay-s", "45", "--max-requeues", "0", "--setup", "module load x"]
    argv += ["--srun-arg=--label", "--slurm-arg", "exclusive=user", "--gres", "gpu:a100:2"]
    script = batch_script(plan_of(slurm, *argv))
    lines = script.splitlines()
    for flag in (
        *(f"{name}=my-{name}" for name in placed),
        *("partition=gpu", "job-name=n", "mail-user=me", "cpus-per-task=3", "mem=1536M", "time=90"),
        *("signal=USR2@45", "no-requeue", "exclusive=user", "gres=gpu:a100:2", "ntasks-per-node=2"),
    ):
        assert f"#SBATCH --{flag}" in lines
    assert "--gpus-per-node" not in script
    assert "module load x" in lines
    srun = next(line for line in lines if line.startswith("srun"))
    assert "--cpus-per-task=3" in srun
    assert "--label" in srun


def test_defaults_that_come_from_the_partition(slurm):
    plan = plan_of(slurm, "--partition", "gpu", trainer=[*TINY, "--set", "training.global_batch=8"])
    assert (plan.gpus_per_node, plan.tasks_per_node) == (4, 4)
    assert "--gpus-per-node 4" in describe(plan)
    assert "groups of neighbouring ranks inside a node" in describe(plan)
    assert plan_of(slurm).tasks_per_node == 1


def test_one_bank_is_not_spread_and_several_are_inside_a_node(slurm):
    argv = ["--partition", "gpu"]
    trainer = [*TINY, "--set", "training.global_batch=8"]
    one = plan_of(slurm, *argv, trainer=trainer)
    assert [task.ep_size for task in one.tasks] == [1]
    assert "ds_configs/ep1.json: with model.banks 1 the fastest" in describe(one)
    several = plan_of(slurm, *argv, trainer=[*trainer, "--set", "model.banks=4"])
    assert [task.ep_size for task in several.tasks] == [4]
    assert "ds_configs/ep4.json: the largest ep_size that fits in a node, for model.banks 4" in describe(several)
    swept = plan_of(slurm, *argv, "--sweep", "model.banks=1,4", trainer=trainer)
    assert [task.ep_size for task in swept.tasks] == [1, 4]


def test_other_options_that_begin_alike_choose_no_configuration(slurm):
    plan = plan_of(slurm, trainer=[*TINY, "--deterministic"])
    assert "ds_configs/ep1.json: with model.banks 1" in describe(plan)


def test_expert_groups_fill_nodes_evenly(slurm):
    argv = ["--tasks-per-node", "6", "--gpus-per-node", "0"]
    spread = ["--set", "training.global_batch=6", "--set", "model.banks=2"]
    plan = plan_of(slurm, *argv, trainer=[*TINY, *spread])
    assert plan.tasks[0].ep_size == 1, "ep4 would span nodes of 6 ranks"
    asked = ["--", "--recipe", "tiny", "--deepspeed_config", "ds_configs/ep8.json"]
    plan = plan_of(slurm, "--nodes", "2", "--gpus-per-node", "0", trainer=asked)
    assert plan.tasks[0].ep_size == 8
    assert "groups of neighbouring ranks across nodes" in describe(plan)


@pytest.mark.parametrize(
    ("argv", "trainer", "said"),
    [
        (["--partition", "gone"], [], "no such partition, but cpu, gpu"),
        (["--nodes", "3"], [], "--nodes 3: partition cpu has 2"),
        (["--gpus-per-node", "1"], [], "at most 0"),
        ([], ["--bogus"], "unrecognized arguments: --bogus"),
        ([], ["--set", "model.embed_dm=3"], "did you mean model.embed_dim"),
        (["--tasks-per-node", "3"], [], "can't be shared by 3 ranks"),
        ([], ["--deepspeed_config", "absent.json"], "absent.json can't be read"),
        (["--sweep", "model.leaders"], [], "KEY=VALUE,VALUE"),
        (["--sweep", "model.leaders=8,8"], [], "a value comes twice"),
        (["--sweep", "model.leadrs=8"], [], "did you mean model.leaders"),
        (["--cluster", "debug", "--tasks-per-node", "2"], [], "one rank"),
    ],
)
def test_what_is_refused_before_submission(argv, trainer, said, slurm, capsys):
    assert main([*argv, "--output-dir", str(slurm), *TINY, *trainer]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("launch.py: ")
    assert said in lines[0]
    assert not slurm.exists()


def test_an_output_folder_that_cannot_be_written(slurm, capsys):
    slurm.write_text("a file")
    assert main(["--output-dir", str(slurm), *TINY]) == 2
    assert "choose another output folder" in capsys.readouterr().err


def test_two_jobs_do_not_share_a_folder(slurm, monkeypatch):
    install(slurm.parent / "bin", monkeypatch, squeue="echo 12; echo 13_0")
    (slurm / "slurm").mkdir(parents=True)
    (slurm / "slurm" / "11_submitted.pkl").touch()
    plan_of(slurm)
    (slurm / "slurm" / "12_submitted.pkl").touch()
    with pytest.raises(ValueError, match="job 12 is still to train"):
        plan_of(slurm)
    plan_of(slurm, "--dependency", "afterany:12")


def test_without_slurm(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["--nodes", "4"]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "no SLURM here" in said
    assert "--cluster local" in said
    assert main(["--cluster", "slurm"]) == 2
    assert main(["--nodes", "2", "--cluster", "local"]) == 2
    assert "has one node, not 2" in capsys.readouterr().err
    plan = plan_of(tmp_path / "out")
    assert plan.cluster == "local"
    assert "training on this machine" in describe(plan)


@pytest.mark.parametrize("cluster", [[], ["--cluster", "slurm"]])
def test_without_slurm_the_batch_script_is_printed_all_the_same(cluster, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["--nodes", "4", "--dry-run", *cluster, *TINY]) == 0
    said = capsys.readouterr().out
    assert "#SBATCH --nodes=4" in said
    assert "there is no SLURM here" in said
    assert not list(tmp_path.iterdir())


def test_a_sweep_is_an_array_of_tasks_in_folders_of_their_own(slurm):
    argv = ["--sweep", "model.leaders=4,8", "--sweep", "training.seed=1,2"]
    plan = plan_of(slurm, *argv)
    assert [task.name for task in plan.tasks][:2] == [
        "model.leaders=4,training.seed=1",
        "model.leaders=4,training.seed=2",
    ]
    assert len({task.output_dir for task in plan.tasks}) == 4
    assert "#SBATCH --array=0-3%4" in batch_script(plan)
