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
import traceback
from pathlib import Path

LOST_RANK_SIGNS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "NCCL communicator was aborted",
)
"""What gloo and NCCL say when another rank has ended."""


def main() -> int:
    """Parse, join the other ranks, train, leave."""
    _leave_package_folder_off_the_path()
    from unimmad.training.arguments import parse_arguments

    try:
        arguments = parse_arguments()
    except ValueError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"train.py: {error}", file=sys.stderr)
        return 2

    from unimmad.parallel.world import join_world, leave_world
    from unimmad.training.loop import RankError
    from unimmad.training.run import train

    world = join_world()
    log_from_main(world.is_main)
    try:
        train(arguments, world)
    except ValueError as error:
        if world.is_main or isinstance(error, RankError):
            print(f"train.py: {error}", file=sys.stderr, flush=True)
        # No clean-up, here and below: other ranks may wait for this one, and the launcher ends them.
        os._exit(2)
    except BaseException as error:
        tell(error, world.rank)
        os._exit(1)
    leave_world()
    return 0


def tell(error: BaseException, rank: int) -> None:
    """The traceback of what went wrong here; one line where this rank only noticed that another is gone."""
    if is_lost_rank(error):
        print(f"train.py: rank {rank} lost another rank, whose own message says why", file=sys.stderr, flush=True)
        return
    traceback.print_exception(error)
    print(f"train.py: rank {rank} failed: {error!r}", file=sys.stderr, flush=True)


def is_lost_rank(error: BaseException) -> bool:
    """Whether this rank only noticed that another is gone."""
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in LOST_RANK_SIGNS)


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
