"""The command ``unimmad train``, which ``unimmad/train.py`` is too: parse, join the other ranks, train, leave."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from unimmad.ranks.launcher import log_from_main, program, rank_and_size

if TYPE_CHECKING:
    from unimmad.parallel.world import World
    from unimmad.training.arguments import TrainArguments


def main() -> int:
    """Train as the command line says; a signal lets the step end, saves and stops."""

    def parse() -> TrainArguments:
        from unimmad.training.arguments import parse_arguments

        return parse_arguments(prog=program())

    return train_on_ranks(parse)


def train_on_ranks(parse: Callable[[], TrainArguments]) -> int:
    """Join the other ranks, train as ``parse`` says, leave; the exit status."""
    from unimmad.ranks.errors import exit_status, tell
    from unimmad.training.stop_request import TerminalStop

    stop = TerminalStop().listen()
    try:
        arguments, world = arguments_and_world(parse)
        log_from_main(world.is_main)
        stop.has_failed_rank = world.has_failed_rank
        from unimmad.training.run import train

        complete = train(arguments, world, stop)
    except Exception as error:
        tell(error, *rank_and_size(), program())
        from unimmad.ranks.exchange import wait_until_told

        wait_until_told(error, *rank_and_size())
        # No clean-up: other ranks may wait for this one, and the launcher ends them.
        os._exit(exit_status(error))
    stop.no_longer()
    if not complete:
        from unimmad.training.run_folder import how_to_continue

        if world.is_main:
            print(f"{program()}: stopped, and saved; {how_to_continue(arguments.resume)}", file=sys.stderr, flush=True)
        os._exit(stop.exit_status)
    from unimmad.parallel.world import leave_world

    leave_world()
    return 0


def arguments_and_world(parse: Callable[[], TrainArguments]) -> tuple[TrainArguments, World]:
    """Several ranks join first, so that each is heard; one that is alone says at once what is wrong."""
    if rank_and_size()[1] == 1:
        arguments = parse()
        from unimmad.parallel.world import join_world

        return arguments, join_world()
    from unimmad.parallel.world import join_world

    world = join_world()
    return world.together(parse), world
