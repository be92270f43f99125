"""What several processes that evaluate tell each other, and how a problem of one ends them all.

They talk over gloo, from host to host, whatever they compute on. Every exchange begins with a notice of each rank to
all; a rank in trouble sends its reason instead of what the others expect, and all of them stop with it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

from unimmad.ranks.errors import LostRankError, Problem, SharedError, StoppedError
from unimmad.ranks.processes import TIMEOUT, meeting, ranks_here, share_cores

T = TypeVar("T")
RANKS_NAMED = 3
"""How many ranks a message names for one reason."""


class Letter(NamedTuple):
    """Bytes for another rank."""

    to: int
    content: bytes


class _Notice(NamedTuple):
    """What each rank tells all others first."""

    note: object
    letters: tuple[tuple[int, int], ...] = ()
    """To whom, and how many bytes."""
    problem: Problem | None = None
    stop: bool = False
    """Whether this rank was asked to stop."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that evaluate; by default the only one.

    Every method that talks must be called by all ranks, equally often and in the same order, inside ``together``.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    """Of all ranks, by gloo; None: the default group."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked at each exchange."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, note: T) -> list[T]:
        """The small, picklable ``note`` of each rank.

        Raises:
            SharedError: some rank has a problem.
            StoppedError: some rank should stop.
            LostRankError: some rank is gone.
        """
        return self.exchange(note)[0]

    def broadcast_object(self, value: T) -> T:
        """Rank 0's ``value``; raises as ``gather``."""
        return self.gather(value)[0]

    def check_same(self, value: str, otherwise: str) -> None:
        """Nodes may have other copies of files.

        Raises:
            SharedError: a rank's ``value`` is not rank 0's: what it has instead, ``otherwise`` says.
        """
        values = self.gather(value)
        different = [rank for rank, of_rank in enumerate(values) if of_rank != values[0]]
        if different:
            problem = f"{_named(different)} has {otherwise} than rank 0; give all ranks the same"
            raise SharedError.of_all(problem, self.size)

    def exchange(self, note: T, letters: Sequence[Letter] = ()) -> tuple[list[T], list[list[bytes]]]:
        """As ``gather``, and letters from rank to rank.

        Returns:
            All notes, and of each rank its letters to this one, in the order that it gave them.
        """
        if self.size == 1:
            assert not letters, "one rank alone has nobody to write to"
            if self.should_stop():
                raise StoppedError
            return [note], [[]]
        lengths = tuple((letter.to, len(letter.content)) for letter in letters)
        notices = self._notices(_Notice(note, lengths, stop=self.should_stop()))
        if any(notice.stop for notice in notices):
            raise StoppedError
        with _peers_expected(self.rank):
            sent = [self._send(number, letter) for number, letter in enumerate(letters)]
            received = [
                [
                    self._receive(sender, number, length)
                    for number, (to, length) in enumerate(notice.letters)
                    if to == self.rank
                ]
                for sender, notice in enumerate(notices)
            ]
            for work, _ in sent:
                work.wait()
        return [notice.note for notice in notices], received  # type: ignore[misc]

    @contextmanager
    def together(self) -> Iterator[None]:
        """What runs inside ends on all ranks or on none.

        Raises:
            SharedError: on every rank, where some raised anything. A rank that is alone raises its error as it is.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
        except (SharedError, LostRankError, StoppedError):
            raise
        except Exception as error:
            self._notices(_Notice(None, problem=Problem.of(error, self.rank)))
        else:
            self._notices(_Notice(None))

    def _notices(self, own: _Notice) -> list[_Notice]:
        notices = [own] * self.size
        with _peers_expected(self.rank):
            dist.all_gather_object(notices, own, group=self.group)
        if problems := [notice.problem for notice in notices if notice.problem is not None]:
            raise SharedError(problems, self.size)
        return notices

    def _send(self, number: int, letter: Letter) -> tuple[dist.Work, torch.Tensor]:
        """What to wait for, and the memory that must stay until then."""
        content = torch.frombuffer(bytearray(letter.content), dtype=torch.uint8)
        work = dist.isend(content, letter.to, group=self.group, tag=number)
        assert work is not None
        return work, content

    def _receive(self, sender: int, number: int, length: int) -> bytes:
        content = torch.empty(length, dtype=torch.uint8)
        dist.recv(content, sender, group=self.group, tag=number)
        return content.numpy().tobytes()


ALONE = Ranks()


def wait_until_told(error: BaseException, rank: int, size: int) -> None:
    """Rank 0 tells what all ranks know of, and a launcher ends it as soon as another rank has left."""
    if isinstance(error, SharedError) and size > 1 and dist.is_initialized():
        with suppress(LostRankError):
            Ranks(rank, size).gather(None)


def join_ranks() -> Ranks:
    """Meet the other processes of ``torchrun`` or ``deepspeed``, where one of them started this one.

    Each takes the GPU of its place on this machine, or its share of the processor.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        return ALONE
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    else:
        share_cores(ranks_here(size))
    with meeting():
        dist.init_process_group("gloo", timeout=TIMEOUT)
    return Ranks(int(os.environ["RANK"]), size)


def leave_ranks() -> None:
    """End what :func:`join_ranks` began; harmless where it found nobody."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _peers_expected(rank: int) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise LostRankError(f"rank {rank} lost another rank ({reason})") from error


def _named(ranks: Sequence[int]) -> str:
    names = ", ".join(map(str, ranks[:RANKS_NAMED]))
    more = f" and {len(ranks) - RANKS_NAMED} more" if len(ranks) > RANKS_NAMED else ""
    return f"rank{'s' * (len(ranks) > 1)} {names}{more}"
