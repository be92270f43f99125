"""See whether later images are still like those that a checkpoint was calibrated on.

    unimmad monitor predictions/predictions.jsonl
    unimmad monitor --checkpoint runs/mine monday.jsonl tuesday.jsonl
    unimmad monitor --watch line.jsonl

FILE holds what unimmad predict wrote, in the order in which images came. Prints which class, modality and statistic
has changed, since when, and what that points to; writes monitor.json and monitor.html with curves. --watch follows the
files as they grow, until Ctrl-C. The exit status is 0 without a drift, 3 with one, 2 where something given is wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from shlex import quote

from unimmad.checkpoint.folder import find_checkpoint, newest_run
from unimmad.checkpoint.monitoring import MONITORING_NAME, MonitoringReference, load_reference
from unimmad.cli.console import run_command
from unimmad.monitoring.lines import BrokenLineError, FollowedFile, parse_line
from unimmad.monitoring.monitor import DEFAULT_FALSE_ALARMS, DEFAULT_SHARE, DriftMonitor
from unimmad.monitoring.output import alarm_line, save, screen_lines
from unimmad.serialization.text import listed, one_line

RUNS = Path("runs")
DRIFT = 3
"""The exit status; 2 says that the monitor itself failed, as other commands do."""
POLL_S = 1.0
SAVE_EVERY_S = 60.0
"""How old the page of a watch may be where new images came; an alarm is on it at once."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = monitor_parser()
    options = parser.parse_args(arguments)
    return run_command(parser.prog, partial(_monitor, options, parser.prog))


def monitor_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON lines of unimmad predict")
    parser.add_argument(
        "--checkpoint", type=Path, help="run or checkpoint folder that made them; default: the newest of runs/"
    )
    parser.add_argument("--watch", action="store_true", help="follow the files as they grow, until Ctrl-C")
    parser.add_argument(
        "--false-alarms",
        type=float,
        default=DEFAULT_FALSE_ALARMS,
        metavar="PROBABILITY",
        help="that there is ever an alarm without a change, however long it watches (default: %(default)s)",
    )
    parser.add_argument(
        "--anomalous-share",
        type=float,
        default=DEFAULT_SHARE,
        metavar="SHARE",
        help="of images that may be called anomalous without that being a drift (default: %(default)s)",
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("monitoring"), metavar="DIR", help="default: %(default)s"
    )
    return parser


def _monitor(options: argparse.Namespace, program: str) -> int:
    monitor = DriftMonitor(_reference(options.checkpoint), options.false_alarms, options.anomalous_share)
    files = [FollowedFile(path) for path in options.files]
    if options.watch:
        _watch(monitor, files, options, program)
    else:
        _read(monitor, files)
    file, page = save(monitor, list(map(str, options.files)), options.output_dir)
    for line in screen_lines(monitor):
        print(line)
    print(f"results  {file}\npage     {page}")
    return DRIFT if monitor.alarms else 0


def _reference(given: Path | None) -> MonitoringReference:
    run = given or newest_run(RUNS)
    if run is None:
        raise ValueError(f"no run in {RUNS}/; name the run that made the predictions with --checkpoint")
    checkpoint = find_checkpoint(run)
    reference = load_reference(checkpoint)
    if reference is None:
        raise ValueError(
            f"{checkpoint} has no {MONITORING_NAME}: nothing is known of calibration images; run unimmad calibrate "
            f"--checkpoint {quote(str(run))}, and predict again"
        )
    return reference


def _read(monitor: DriftMonitor, files: Sequence[FollowedFile]) -> None:
    """All lines of all files.

    Raises:
        ValueError: a file is empty or can't be read, a line broken or of another checkpoint, or none is of a class that
            was calibrated.
    """
    for file in files:
        count = 0
        try:
            for where, line in file.lines(last=True):
                monitor.add(parse_line(line, where, monitor.reference.digest))
                count += 1
        except OSError as error:
            raise ValueError(f"{file.path} can't be read: {error.strerror}") from None
        if not count:
            raise ValueError(f"{file.path} is empty: it holds no prediction")
    if not monitor.seen:
        names = listed([f"{one_line(what)} ({count})" for what, count in monitor.unknown.most_common()], 5)
        known = listed(sorted(monitor.reference.classes), 5)
        raise ValueError(f"no prediction is of a calibrated class, but of: {names}; calibrated are {known}")


def _watch(monitor: DriftMonitor, files: Sequence[FollowedFile], options: argparse.Namespace, program: str) -> None:
    """Until it is interrupted; tells of alarms as they come.

    Raises:
        ValueError: a line is of another checkpoint, or the page can't be written.
    """
    saved, seen, names = 0.0, -1, list(map(str, options.files))
    try:
        while True:
            alarms = len(monitor.alarms)
            for file in files:
                _follow(monitor, file, program)
            new = sum(monitor.seen.values()) != seen
            for alarm in monitor.alarms[alarms:]:
                print(f"DRIFT {one_line(alarm.stream)}: {alarm_line(alarm, monitor)}", flush=True)
            if len(monitor.alarms) > alarms or (new and time.monotonic() - saved > SAVE_EVERY_S):
                save(monitor, names, options.output_dir)
                saved, seen = time.monotonic(), sum(monitor.seen.values())
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        print(f"{program}: no longer watching", file=sys.stderr)


def _follow(monitor: DriftMonitor, file: FollowedFile, program: str) -> None:
    """What is new in a file; a broken line, as a truncation may leave, is passed over and told of."""
    try:
        for where, line in file.lines():
            try:
                monitor.add(parse_line(line, where, monitor.reference.digest))
            except BrokenLineError as error:
                print(f"{program}: passed over: {one_line(error)}", file=sys.stderr)
    except FileNotFoundError:
        return  # not there yet, or being replaced
    except BrokenLineError as error:
        print(f"{program}: passed over: {one_line(error)}", file=sys.stderr)
