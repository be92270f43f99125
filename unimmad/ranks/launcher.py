"""What the launcher of this process said of it, and who speaks."""

from __future__ import annotations

import logging
import os
import sys


def program() -> str:
    """What was typed to start this process, as argparse calls it: ``train.py``, or ``unimmad train``."""
    return os.path.basename(sys.argv[0])


def rank_and_size() -> tuple[int, int]:
    """As the launcher says; a process without one is alone."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def log_from_main(is_main: bool) -> None:
    """Only rank 0 speaks of what goes well."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
    logging.getLogger("unimmad").setLevel(logging.INFO if is_main else logging.ERROR)
    logging.captureWarnings(True)
    if not is_main:
        logging.getLogger("py.warnings").setLevel(logging.ERROR)
