"""A command that several processes may run together, started by torchrun or deepspeed: how it ends on each of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress

from unimmad.cli.signals import ending_by, interrupts
from unimmad.ranks.errors import exit_status, tell
from unimmad.ranks.exchange import LostRankError, Ranks, join_ranks, leave_ranks
from unimmad.ranks.launcher import rank_and_size


def on_ranks(work: Callable[[Ranks], None], program: str, if_interrupted: str = "") -> int:
    """Join the other ranks and ``work``; the exit status. Rank 0 says in one line what the user can mend (2).

    Args:
        work: what each rank does.
        program: begins every message.
        if_interrupted: follows the word that says so.
    """
    try:
        ranks = join_ranks()
    except ValueError as error:
        tell(error, *rank_and_size(), program)
        return exit_status(error)
    try:
        with ranks.together(), ending_by(interrupts()):
            work(ranks)
    except ValueError as error:
        if ranks.is_main:
            tell(error, ranks.rank, ranks.size, program)
        with suppress(LostRankError):
            ranks.gather(None)  # a launcher ends the others when the first has ended: not before rank 0 has said it
        return exit_status(error)
    except LostRankError as error:
        tell(error, ranks.rank, ranks.size, program)
        return 1
    except KeyboardInterrupt:
        if ranks.is_main:
            print(f"{program}: interrupted{if_interrupted}", file=sys.stderr)
        return 130
    leave_ranks()
    return 0
