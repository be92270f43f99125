"""Look at predictions on a page of this machine, and call each normal or anomalous.

    unimmad review predictions/
    unimmad review predictions/ --checkpoint runs/mine --port 9000

Each decision is saved at once, in PREDICTIONS/decisions.csv; the same command goes on where one left off. Keys: N, A, U
(take back), arrows. The page loads nothing from elsewhere and listens to this machine alone unless --host says
otherwise; there are no users or passwords. Ctrl-C ends it and prints the command that gives what was said to the
checkpoint (unimmad feedback). Needs the extra [serve].
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from unimmad.cli.console import run_command
from unimmad.cli.serve import LOOPBACK_NAMES
from unimmad.serialization.folder_lock import FolderLock

LOCK_NAME = "reviewing"


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page as ``argv`` say (None: those of the command line); 0 after its end, 2 where something is wrong."""
    parser = review_parser()
    options = parser.parse_args(argv)
    return run_command(parser.prog, partial(_review, options), sigterm=False)


def review_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="the folder that unimmad predict wrote")
    parser.add_argument(
        "--checkpoint", type=Path, help="that made them: for the command at the end; default: the newest of runs/"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all, for anybody (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8001, help="0: any that is free (default: %(default)s)")
    return parser


def _review(options: argparse.Namespace) -> None:
    try:
        from unimmad.serving.review import Review, create_review_app
        from unimmad.serving.server import is_loopback, listening_socket, serve, url_of
    except ImportError as error:
        raise ValueError(f'the page needs FastAPI and others ({error}): pip install "unimmad[serve]"') from None
    if not options.predictions.is_dir():
        raise ValueError(f"{options.predictions} does not exist; name the folder that unimmad predict wrote")
    with (
        listening_socket(options.host, options.port) as listening,
        FolderLock(LOCK_NAME, "review", "use its page") as lock,
    ):
        lock.take(options.predictions)
        review = Review(options.predictions)
        command = _command(options, review.file)
        alone = is_loopback(listening)
        if not alone:
            print("note: anybody who can reach this address may look and decide: no passwords", file=sys.stderr)
        names = (*LOOPBACK_NAMES, options.host) if alone else None
        print(f"{len(review.samples)} predictions at {url_of(listening)} until Ctrl-C", flush=True)
        serve(create_review_app(review, command, names), listening)
    where = f", in {review.file}" if review.file.exists() else ", nothing is saved"
    print(f"{len(review.decisions)} of {len(review.samples)} called{where}")
    if review.decisions:
        print(f"next: {command}")
        if len(review.decisions) == len(review.samples):
            print("note: add --complete if these are images as they came, none chosen: then all count in full")


def _command(options: argparse.Namespace, decisions: Path) -> str:
    checkpoint = [] if options.checkpoint is None else ["--checkpoint", str(options.checkpoint)]
    words = ["unimmad", "feedback", *checkpoint, "--predictions", str(options.predictions), "--csv", str(decisions)]
    return shlex.join(words)
