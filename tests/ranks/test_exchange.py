"""What ranks tell each other, on real processes; and how a problem of one ends all."""

from __future__ import annotations

import pytest
import torch
from parallel.ranks import run_on_ranks

from unimmad.ranks.errors import SharedError, StoppedError
from unimmad.ranks.exchange import ALONE, Letter, Ranks

SIZE = 3


def letters(rank: int, size: int) -> dict[str, torch.Tensor]:
    """Two letters to the next rank, the second larger."""
    ranks = Ranks(rank, size)
    after = (rank + 1) % size
    notes, inbox = ranks.exchange(rank * 10, [Letter(after, b"first"), Letter(after, bytes([rank]) * 300_000)])
    before = (rank - 1) % size
    assert notes == [0, 10, 20]
    assert inbox[before] == [b"first", bytes([before]) * 300_000]
    assert all(not content for sender, content in enumerate(inbox) if sender != before)
    assert ranks.broadcast_object(f"of {rank}") == "of 0"
    return {}


def failing(rank: int, size: int) -> dict[str, torch.Tensor]:
    """Each of these in turn, on the same ranks, which go on talking afterwards."""
    ranks = Ranks(rank, size)
    for attempt, message in [
        (_one_cannot, r"^rank 1 \(.+\): no such file$"),
        (_none_can, r"^the same$"),
        (_each_has_a_reason, r"^rank 0 \(.+\): left\nrank 1 \(.+\) and 1 more: right$"),
        (_another_copy, r"^rank 2 has other data than rank 0; give all ranks the same$"),
    ]:
        with pytest.raises(SharedError, match=message):
            attempt(ranks)
    with pytest.raises(SharedError, match=r"^rank 2 \(.+\) failed: KeyError\('a bug'\)$"):
        _bug(ranks)
    with ranks.together():
        assert ranks.gather(rank) == [0, 1, 2]
    return {}


def _one_cannot(ranks: Ranks) -> None:
    with ranks.together():
        if ranks.rank == 1:
            raise ValueError("no such file")
        ranks.exchange(None, [Letter((ranks.rank + 1) % ranks.size, b"never read")])


def _none_can(ranks: Ranks) -> None:
    with ranks.together():
        raise ValueError("the same")


def _each_has_a_reason(ranks: Ranks) -> None:
    with ranks.together():
        raise ValueError("right" if ranks.rank else "left")


def _another_copy(ranks: Ranks) -> None:
    with ranks.together():
        ranks.check_same("a" if ranks.rank < 2 else "b", "other data")


def _bug(ranks: Ranks) -> None:
    """After all exchanges of the others."""
    with ranks.together():
        ranks.gather(1)
        if ranks.rank == 2:
            raise KeyError("a bug")


def stopped(rank: int, size: int) -> dict[str, torch.Tensor]:
    """One is asked to, all stop; what was done by then counts, and they go on talking afterwards."""
    asked: list[bool] = []
    ranks = Ranks(rank, size, should_stop=lambda: bool(asked))
    with ranks.together():
        assert ranks.gather(rank) == [0, 1, 2]
        if rank == 1:
            asked.append(True)
    with pytest.raises(StoppedError), ranks.together():
        ranks.gather(rank)
    asked.clear()
    assert ranks.broadcast_object(rank) == 0
    return {}


@pytest.mark.parametrize("function", [letters, failing, stopped])
def test_on_three_ranks(function, tmp_path):
    assert run_on_ranks(function, SIZE, tmp_path) == [{}] * SIZE


def test_alone_there_is_nobody_to_wait_for():
    assert ALONE.exchange("note") == (["note"], [[]])
    assert ALONE.broadcast_object(7) == 7
    with pytest.raises(ValueError, match=r"^the same$") as raised:
        _none_can(ALONE)
    assert type(raised.value) is ValueError
    with pytest.raises(StoppedError):
        Ranks(should_stop=lambda: True).gather("note")
