"""Train UniMMAD.

    deepspeed unimmad/train.py --deepspeed_config ds_configs/ep4.json
    torchrun --nproc-per-node 2 unimmad/train.py --recipe paper --data shards/mvtec shards/visa
    python unimmad/train.py --set training.epochs=5

Without arguments it trains the demo recipe on the synthetic set. ``--help`` lists the rest.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unimmad.parallel.world import World
    from unimmad.training.arguments import TrainArguments


def main() -> int:
    """Parse, join the other ranks, train, leave; a signal lets the step end, saves and stops."""
    _leave_package_folder_off_the_path()
    from unimmad.ranks.errors import exit_status, tell
    from unimmad.training.stop_request import TerminalStop

    stop = TerminalStop().listen()
    try:
        arguments, world = arguments_and_world()
        log_from_main(world.is_main)
        stop.has_failed_rank = world.has_failed_rank
        from unimmad.training.run import train

        complete = train(arguments, world, stop)
    except Exception as error:
        tell(error, *rank_and_size())
        from unimmad.ranks.exchange import wait_until_told

        wait_until_told(error, *rank_and_size())
        # No clean-up: other ranks may wait for this one, and the launcher ends them.
        os._exit(exit_status(error))
    stop.no_longer()
    if not complete:
        from unimmad.training.run_folder import how_to_continue

        if world.is_main:
            print(f"train.py: stopped, and saved; {how_to_continue(arguments.resume)}", file=sys.stderr, flush=True)
        os._exit(stop.exit_status)
    from unimmad.parallel.world import leave_world

    leave_world()
    return 0


def arguments_and_world() -> tuple[TrainArguments, World]:
    """Several ranks join first, so that each is heard; one that is alone says at once what is wrong."""
    from unimmad.training.arguments import parse_arguments

    if rank_and_size()[1] == 1:
        arguments = parse_arguments()
        from unimmad.parallel.world import join_world

        return arguments, join_world()
    from unimmad.parallel.world import join_world

    world = join_world()
    return world.together(parse_arguments), world


def rank_and_size() -> tuple[int, int]:
    """As the launcher says; a process without one is alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _leave_package_folder_off_the_path() -> None:
    """Python puts a script's own folder first on the path, where our modules would hide libraries of the same name."""
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != here]


def log_from_main(is_main: bool) -> None:
    """Only rank 0 speaks of what goes well."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("unimmad").setLevel(logging.INFO if is_main else logging.ERROR)
    logging.captureWarnings(True)
    if not is_main:
        logging.getLogger("py.warnings").setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
