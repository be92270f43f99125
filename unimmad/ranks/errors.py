"""What is said when something goes wrong on some ranks: once, with rank and host, in the order of ranks."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

from unimmad.serialization.atomic_write import host_name
from unimmad.serialization.validation import Count

LOST_RANK_SIGNS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "NCCL communicator was aborted",
    "ncclRemoteError",
    "remote process exited",
    "Timed out waiting",
)
"""What gloo and NCCL say when another rank has ended."""


@dataclass(frozen=True)
class Problem:
    """What went wrong on one rank."""

    rank: Count
    node: str
    message: str
    trace: str
    """The traceback; empty where the message is for users and says it all."""

    @classmethod
    def of(cls, error: BaseException, rank: int) -> Problem:
        if isinstance(error, ValueError):
            return cls(rank, host_name(), str(error), "")
        return cls(rank, host_name(), repr(error), "".join(traceback.format_exception(error)))


class LostRankError(RuntimeError):
    """Another rank is gone, or does not answer; its own message says why."""


class StoppedError(Exception):
    """Some rank was asked to stop; all ranks raise it."""


class SharedError(ValueError):
    """What every rank raises where some rank met a problem; rank 0 tells it.

    Args:
        problems: in the order of ranks.
        size: number of ranks.
    """

    def __init__(self, problems: Sequence[Problem], size: int) -> None:
        self.problems = tuple(problems)
        self.size = size
        super().__init__("\n".join(self.lines()))

    @classmethod
    def of_all(cls, message: str, size: int) -> SharedError:
        """Of a problem that all ranks see alike, since they compared what they have."""
        return cls([Problem(rank, host_name(), message, "") for rank in range(size)], size)

    def distinct(self) -> list[Problem]:
        """The first rank's of each message."""
        first: dict[str, Problem] = {}
        for problem in self.problems:
            first.setdefault(problem.message, problem)
        return list(first.values())

    def lines(self) -> list[str]:
        """One a message; the rank is left out of what all ranks say."""
        return [self._line(first) for first in self.distinct()]

    def _line(self, first: Problem) -> str:
        ranks = sum(problem.message == first.message for problem in self.problems)
        others = f" and {ranks - 1} more" if ranks > 1 else ""
        where = "" if ranks == self.size else f"rank {first.rank} ({first.node}){others}"
        if first.trace:
            return f"{where} failed: {first.message}".lstrip()
        return f"{where}: {first.message}" if where else first.message


def tell(error: BaseException, rank: int, size: int, program: str) -> None:
    """Print what went wrong in ``program``: one line a problem, after a traceback unless users can mend it.

    A rank that only noticed that another is gone says so.
    """
    problems = problems_to_tell(error, rank)
    if isinstance(error, SharedError):
        lines = error.lines() if problems else []
    elif problems:
        lines = SharedError(problems, size).lines()
    else:
        lines = [f"rank {rank} ({host_name()}) lost another rank, whose own message says why"]
    # Rank 0's progress bar may stand in the line. One write, so that the lines of several ranks do not mix.
    text = "\n" if rank and lines else ""
    text += "".join(problem.trace for problem in problems) + "".join(f"{program}: {line}\n" for line in lines)
    sys.stderr.write(text)
    sys.stderr.flush()


def problems_to_tell(error: BaseException, rank: int) -> list[Problem]:
    """Rank 0 tells what all ranks know of, any other rank what came up there alone."""
    if isinstance(error, SharedError):
        return error.distinct() if rank == 0 else []
    return [] if is_lost_rank(error) else [Problem.of(error, rank)]


def exit_status(error: BaseException) -> int:
    """2 for what the user can mend, 1 for the rest."""
    traces = [problem.trace for problem in error.problems] if isinstance(error, SharedError) else []
    return 2 if isinstance(error, ValueError) and not any(traces) else 1


def is_lost_rank(error: BaseException) -> bool:
    """Whether this rank only noticed that another is gone."""
    if isinstance(error, LostRankError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST_RANK_SIGNS)
