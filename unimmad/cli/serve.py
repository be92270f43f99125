"""Score samples that come over HTTP: a detector as a service on this machine.

    unimmad serve --checkpoint runs/demo
    unimmad serve --checkpoint model.onnx --port 9000 --batch-size 16
    curl -F rgb=@part.png -F depth=@part_depth.png -F class=cookie http://127.0.0.1:8000/predict

The page at / says what a request may be and lets a browser try one; /healthz, /readyz and /metrics are for what
watches it. Requests are scored together as they come; more than --queue at once are refused with 429. SIGTERM and
Ctrl-C end it when the requests that it has are answered. There are no users or passwords: it listens to this machine
alone unless --host says otherwise. Needs the extra [serve].
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from unimmad.cli.console import run_command
from unimmad.cli.opening import add_detector_options, open_detector
from unimmad.inference.detector import DEFAULT_BATCH_SIZE, Detector
from unimmad.inference.engines import OnnxEngine

MIB = 2**20
MOST_MIB = 2**20
"""That a limit may be."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1", "[::1]")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve as ``argv`` say (None: those of the command line); 0 after a graceful end, 2 where something is wrong."""
    parser = serve_parser()
    options = parser.parse_args(argv)
    return run_command(parser.prog, partial(_serve, options), sigterm=False)


def serve_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what is served")
    what.add_argument("--checkpoint", type=Path, required=True, help="run folder, checkpoint folder or .onnx file")
    add_detector_options(what)
    where = parser.add_argument_group("where")
    where.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all, for anybody (default: %(default)s)"
    )
    where.add_argument("--port", type=int, default=8000, help="0: any that is free (default: %(default)s)")
    limits = parser.add_argument_group("how much at once")
    limits.add_argument(
        "--batch-size",
        type=int,
        default=DEFAULT_BATCH_SIZE,
        help="samples scored together at most; default: %(default)s",
    )
    limits.add_argument(
        "--max-wait",
        type=float,
        default=5.0,
        metavar="MS",
        help="milliseconds that a sample waits for others to share its batch (default: %(default)g)",
    )
    limits.add_argument(
        "--queue", type=int, default=32, help="requests in the house at once; more get 429 (default: %(default)s)"
    )
    limits.add_argument(
        "--max-request",
        type=float,
        default=64.0,
        metavar="MIB",
        help="size of a request with all its images; memory for --queue of them is needed (default: %(default)g)",
    )
    limits.add_argument(
        "--upload-timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="in which a request must have arrived (default: %(default)g)",
    )
    return parser


def _serve(options: argparse.Namespace) -> None:
    try:
        from unimmad.serving.app import ServingSettings, create_app
        from unimmad.serving.batching import Batching
        from unimmad.serving.forms import UploadLimits
        from unimmad.serving.server import is_loopback, listening_socket, serve, url_of
    except ImportError as error:
        raise ValueError(f'serving needs FastAPI and others ({error}): pip install "unimmad[serve]"') from None
    batching = Batching(options.batch_size, options.max_wait / 1000, options.queue)
    if not 0 < options.max_request < MOST_MIB:
        raise ValueError(f"--max-request {options.max_request:g} can't be a limit for a request: give MiB, above 0")
    limits = UploadLimits(int(options.max_request * MIB), options.upload_timeout)
    with listening_socket(options.host, options.port) as listening:
        detector = open_detector(options.checkpoint, options)
        alone = is_loopback(listening)
        title = f"UniMMAD: {options.checkpoint}"
        settings = ServingSettings(title, batching, limits, (*LOOPBACK_NAMES, options.host) if alone else None)
        app = create_app(detector, settings)
        if not alone:
            print("note: anybody who can reach this address may use it: there are no passwords", file=sys.stderr)
        if detector.thresholds is None and not detector.added:
            print(f"note: no thresholds, so there are scores without decisions: {_remedy(detector)}", file=sys.stderr)
        print(f"serving {options.checkpoint} at {url_of(listening)}", flush=True)
        serve(app, listening)


def _remedy(detector: Detector) -> str:
    """What gives thresholds."""
    if detector.engine.misses_class:
        return "serve the checkpoint, since an exported file is not told the class that they depend on"
    if isinstance(detector.engine, OnnxEngine):
        return "calibrate the file's checkpoint (unimmad calibrate), and export it again"
    return "unimmad calibrate makes them"
