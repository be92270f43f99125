"""Tasks as they start, ranks on nodes, and the shared folder, without a cluster."""

from __future__ import annotations

import subprocess

import pytest
import torch

from unimmad.launching import task_env as shared_folder
from unimmad.launching.submission import PYTHON_OF_TASKS
from unimmad.launching.task_env import Place, check_neighbours, describe_ranks
from unimmad.launching.watch import LogTail, last_lines
from unimmad.parallel.world import World


def test_a_signal_before_the_handlers_does_not_end_a_task():
    argv = "'import os; os.kill(os.getpid(), 12); os.kill(os.getpid(), 15); print(7)'"
    done = subprocess.run(["bash", "-c", f"{PYTHON_OF_TASKS} -c {argv}"], capture_output=True, text=True, check=False)
    assert done.stdout == "7\n"


def test_ranks_and_groups():
    nodes = ["a", "a", "b", "b"]
    check_neighbours(nodes, 2)
    assert describe_ranks(nodes, 2) == "ranks 0-1 a, 2-3 b; expert groups of 2 inside nodes"
    assert describe_ranks(nodes, 4).endswith("expert groups of 4 span nodes")
    with pytest.raises(ValueError, match="must share a node"):
        check_neighbours(["a", "b", "a", "b"], 2)


def test_every_start_of_a_job_meets_at_another_port():
    def port(job_id: str, restarts: int) -> int:
        return Place("slurm", job_id, 0, 2, 0, 1, "a", "a", restarts).port

    ports = {port(job_id, restarts) for job_id in ("1", "1_2", "77") for restarts in range(3)}
    assert len(ports) == 9
    assert min(ports) >= 20000
    assert max(ports) < 32000


def test_a_folder_that_a_rank_does_not_see(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_folder, "PATIENCE_S", 0.2)
    main, other = (World(rank, 1, 0, torch.device("cpu")) for rank in (0, 1))
    shared_folder.check_shared(tmp_path / "probe", main, ["a"])
    assert not (tmp_path / "probe").exists()
    with pytest.raises(ValueError, match="the output folder is not shared"):
        shared_folder.check_shared(tmp_path / "probe", other, ["b"])


def test_logs(tmp_path):
    path = tmp_path / "log"
    tail = LogTail(path)
    assert tail.news() == ""
    path.write_bytes(b"one\n")
    assert tail.news() == "one\n"
    with path.open("ab") as file:
        file.write(b"1/3\r2/3\r3/3\n\nlast\xff\n")
    assert tail.news().startswith("1/3")
    assert last_lines(path, 2) == "3/3\nlast\ufffd"
