"""What goes wrong on some ranks reaches all of them, and is said once."""

from __future__ import annotations

import pytest
import torch
from parallel.ranks import run_on_ranks

from unimmad.parallel.world import World
from unimmad.ranks.errors import Problem, SharedError, exit_status, tell
from unimmad.serialization.atomic_write import host_name

PLACES = [Problem(1, "n1", "no data", ""), Problem(8, "n2", "no cache", ""), Problem(9, "n2", "no cache", "")]


def some_fail(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Rank 1 lacks a file, then rank 0 what it does for all, then nothing goes wrong."""
    world = World(rank, world_size, rank, torch.device("cpu"))

    def lacking(where: int) -> str:
        if rank == where:
            raise ValueError("the file is missing")
        return "read"

    heard = []
    for action, attempt in ((lambda: lacking(1), world.together), (lambda: lacking(0), world.on_main)):
        try:
            attempt(action)
        except SharedError as error:
            heard.append(str(error))
    assert world.together(lambda: rank) == rank
    assert world.on_main(lambda: f"of rank {rank}") == "of rank 0"
    expected = [f"rank {where} ({host_name()}): the file is missing" for where in (1, 0)]
    return {"right": torch.tensor(heard == expected), "largest": torch.tensor(world.largest([rank, -rank]))}


def test_every_rank_hears_what_one_met(tmp_path):
    for results in run_on_ranks(some_fail, 2, tmp_path):
        assert results["right"]
        assert results["largest"].tolist() == [1, 0]


def test_alone_an_error_stays_what_it_is():
    def fail() -> None:
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError, match=r"^gone$"):
        World(0, 1, 0, torch.device("cpu")).together(fail)


def test_lines_come_in_the_order_of_ranks_each_message_once():
    error = SharedError(PLACES, size=16)
    assert error.lines() == ["rank 1 (n1): no data", "rank 8 (n2) and 1 more: no cache"]
    mixed = SharedError([*PLACES, Problem(10, "n2", "no data", "")], size=16)
    assert mixed.lines()[0] == "rank 1 (n1) and 1 more: no data"
    assert SharedError.of_all("a bad recipe", size=16).lines() == ["a bad recipe"]


def test_rank_0_tells_what_all_know_and_each_its_own(capsys):
    shared = SharedError(PLACES, size=16)
    tell(shared, 3, 16, "train.py")
    assert capsys.readouterr().err == ""
    tell(shared, 0, 16, "train.py")
    assert capsys.readouterr().err == "train.py: rank 1 (n1): no data\ntrain.py: rank 8 (n2) and 1 more: no cache\n"
    tell(ValueError("a sample is damaged"), 3, 16, "train.py")
    assert capsys.readouterr().err == f"\ntrain.py: rank 3 ({host_name()}): a sample is damaged\n"
    tell(ValueError("a sample is damaged"), 0, 1, "train.py")
    assert capsys.readouterr().err == "train.py: a sample is damaged\n"
    tell(RuntimeError("Connection closed by peer"), 3, 16, "train.py")
    assert "lost another rank" in capsys.readouterr().err


def test_a_traceback_is_shown_once_and_ends_with_rank_and_host(capsys):
    trace = "Traceback (most recent call last):\nKeyError: 'x'\n"
    shared = SharedError([Problem(rank, "n1", "KeyError('x')", trace) for rank in (1, 2)], size=4)
    tell(shared, 0, 4, "train.py")
    assert capsys.readouterr().err == f"{trace}train.py: rank 1 (n1) and 1 more failed: KeyError('x')\n"
    assert exit_status(shared) == 1
    assert exit_status(SharedError(PLACES, size=16)) == 2
    assert exit_status(ValueError("a sample is damaged")) == 2
    assert exit_status(KeyError("x")) == 1
