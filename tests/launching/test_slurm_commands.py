"""Reading what SLURM's commands say."""

from __future__ import annotations

import pytest
from launching.fake_slurm import install

from unimmad.launching.slurm_commands import (
    AWAY,
    LOST,
    JobState,
    choose_partition,
    count_gpus,
    job_state,
    partitions,
    requeue,
    why_no_slurm,
)


@pytest.mark.parametrize(
    ("resources", "gpus"),
    [
        ("(null)", 0),
        ("gpu:8", 8),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:a100:4(S:0-1),gpu:t4:2", 6),
        ("nic:3,gpu:1g.5gb:7(S:0)", 7),
        ("mygpu:3", 0),
    ],
)
def test_gpus_of_a_node(resources, gpus):
    assert count_gpus(resources) == gpus


def test_partitions(tmp_path, monkeypatch):
    install(tmp_path / "bin", monkeypatch)
    known = partitions()
    assert choose_partition(known, None).name == "cpu"
    assert choose_partition(known, "gpu").gpus_of_nodes == {"g1": 8, "g2": 4}
    assert set(choose_partition(known, "cpu,gpu").gpus_of_nodes) == {"a1", "a2", "g1", "g2"}
    with pytest.raises(ValueError, match="no such partition, but cpu, gpu"):
        choose_partition(known, "gone")


def test_a_machine_without_slurm_or_without_its_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert why_no_slurm() == "no sbatch"
    install(tmp_path / "bin", monkeypatch, sinfo="echo 'fatal: Could not establish a configuration source' >&2; exit 1")
    assert "no configuration" in why_no_slurm()
    install(tmp_path / "bin", monkeypatch)
    assert why_no_slurm() == ""


def test_job_state_by_the_controller(tmp_path, monkeypatch):
    line = "JobId=7 JobName=a b JobState=PENDING Reason=BeginTime Restarts=2 ExitCode=0:9 NodeList=n[1-2]"
    install(tmp_path / "bin", monkeypatch, scontrol=f"echo '{line}'")
    assert job_state("7") == JobState("PENDING", "0:9", 2, "BeginTime", "n[1-2]")


def test_job_state_by_accounting_once_the_controller_forgot(tmp_path, monkeypatch):
    forgot = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    install(tmp_path / "bin", monkeypatch, scontrol=forgot, sacct="echo 'CANCELLED by 0|0:15'")
    assert job_state("7") == JobState("CANCELLED", "0:15")
    install(tmp_path / "bin", monkeypatch, scontrol=forgot, sacct="exit 1")
    assert job_state("7").state == LOST


def test_a_controller_that_does_not_answer_is_no_verdict(tmp_path, monkeypatch):
    install(tmp_path / "bin", monkeypatch, scontrol="echo 'Unable to contact slurm controller' >&2; exit 1")
    assert job_state("7").state == AWAY
    with pytest.raises(ValueError, match="Unable to contact"):
        requeue("7")
