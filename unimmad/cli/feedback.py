"""Tell a checkpoint which of its predictions were right: its thresholds are made again, and its banks grow.

    unimmad feedback --checkpoint runs/mine --normal parts/07 parts/12 --anomalous parts/31
    unimmad feedback --checkpoint runs/mine --csv predictions/decisions.csv      as unimmad review writes it
    unimmad feedback --checkpoint runs/mine --csv all.csv --complete             every image was called, as they came
    unimmad feedback --checkpoint runs/mine --undo
    unimmad feedback --checkpoint runs/mine                                      all versions

Images called normal join their class's calibration and memory bank; called anomalies only check the thresholds, and
nothing is trained. The false-alarm rate stays promised: images picked by somebody can raise a threshold and never lower
it. See docs/feedback.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from unimmad.checkpoint.feedback import (
    Decision,
    changing,
    check_settled,
    is_interrupted,
    load_feedback,
    save_version,
    settle,
    undo,
)
from unimmad.checkpoint.folder import NO_VERIFY_HELP, find_checkpoint, newest_run
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.thresholds import Thresholds, load_thresholds
from unimmad.cli.console import run_command
from unimmad.evaluation.scoring import named_device
from unimmad.inference.detector import Detector
from unimmad.inference.feedback import Change, FeedbackTaker
from unimmad.inference.feedback_report import change_lines, version_line
from unimmad.inference.predicted import Predicted, check_known, read_decisions, read_predictions, some
from unimmad.serialization.text import one_line

RUNS = Path("runs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Take feedback as ``arguments`` say (None: the command line's); 0, or 2 where something given is wrong."""
    parser = feedback_parser()
    options = parser.parse_args(arguments)
    left = "; nothing was changed, or the next call finishes it"
    return run_command(parser.prog, partial(_run, options), if_interrupted=left)


def feedback_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--checkpoint",
        "--run",
        type=Path,
        help="run or checkpoint folder that made the predictions; default: the newest of runs/",
    )
    parser.add_argument("--no-verify", action="store_true", help=NO_VERIFY_HELP)
    said = parser.add_argument_group("what was said")
    said.add_argument(
        "--predictions",
        type=Path,
        default=Path("predictions"),
        metavar="DIR",
        help="that were looked at; default: %(default)s",
    )
    said.add_argument("--normal", nargs="+", default=[], metavar="ID", help="names of predictions that are normal")
    said.add_argument("--anomalous", nargs="+", default=[], metavar="ID", help="names of those that are anomalous")
    said.add_argument(
        "--csv", type=Path, metavar="FILE", help="a table with the columns name and decision (normal or anomalous)"
    )
    said.add_argument(
        "--complete",
        action="store_true",
        help="every one of the predictions was looked at and is called, and they are images as they came, none chosen: "
        "those called normal count as calibration's do, and may lower thresholds",
    )
    said.add_argument(
        "--class", dest="class_name", metavar="CLASS", help="of those that were predicted without a class"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    parser.add_argument("--undo", action="store_true", help="take the newest version back")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    return parser


def _run(options: argparse.Namespace) -> None:
    decisions = _decisions(options)
    if options.undo and (decisions or options.dry_run):
        raise ValueError("--undo takes nothing but --checkpoint beside it")
    if options.complete and not decisions:
        raise ValueError("--complete says that all was looked at, but nothing was called: give --csv, or names")
    folder = _checkpoint(options.checkpoint)
    if options.undo:
        with changing(folder):
            settle(folder)
            undone = undo(folder, load_feedback(folder, None, load_thresholds(folder)))
        print(f"undone   {version_line(undone, True)}")
    elif decisions:
        predictions = _predictions(options, decisions)
        if options.dry_run:
            check_settled(folder)
            _take(options, folder, predictions, decisions)
            return
        with changing(folder):
            settle(folder)
            _take(options, folder, predictions, decisions)
    else:
        _list(folder)


def _decisions(options: argparse.Namespace) -> dict[str, Decision]:
    """
    Raises:
        ValueError: two things are said of one prediction, or the table is none.
    """
    found: dict[str, Decision] = {} if options.csv is None else read_decisions(options.csv, options.predictions)
    named: list[tuple[str, Decision]] = [(name, "normal") for name in options.normal]
    named += [(name, "anomalous") for name in options.anomalous]
    for name, decision in named:
        if found.setdefault(name, decision) != decision:
            raise ValueError(f"{one_line(name)} is called both normal and anomalous: say one of them")
    if options.csv is not None and not found:
        raise ValueError(f"{options.csv} calls nothing normal or anomalous yet")
    return found


def _predictions(options: argparse.Namespace, decisions: Mapping[str, Decision]) -> dict[str, Predicted]:
    """
    Raises:
        ValueError: there are none, or not those that something is said of.
    """
    predictions = read_predictions(options.predictions)
    check_known(decisions, predictions, options.predictions)
    left = [name for name in predictions if name not in decisions]
    if options.complete and left:
        raise ValueError(
            f"--complete: {len(left)} of {len(predictions)} predictions were not called normal or anomalous: "
            f"{some(left)}; call them, too, or leave --complete out"
        )
    return predictions


def _checkpoint(given: Path | None) -> Path:
    run = given or newest_run(RUNS)
    if run is None:
        raise ValueError(f"no run in {RUNS}/; name the run that made the predictions with --checkpoint")
    return find_checkpoint(run)


def _list(folder: Path) -> None:
    if is_interrupted(folder):
        with changing(folder):
            settle(folder)
    feedback = load_feedback(folder, None, load_thresholds(folder))
    for version in feedback.versions:
        print(version_line(version, version in feedback.counted))
    if not feedback.versions:
        print(f"{folder} has no feedback yet; --normal, --anomalous or --csv give some, and unimmad review has a page")


def _take(
    options: argparse.Namespace, folder: Path, predictions: Mapping[str, Predicted], decisions: Mapping[str, Decision]
) -> None:
    thresholds = load_thresholds(folder)
    loaded = load_checkpoint(folder, verify=not options.no_verify)
    weights = loaded.weights_digest
    detector = Detector.of_loaded(
        loaded,
        device=named_device(options.device),
        precision=None if thresholds is None else thresholds.precision,
        tiles=_tiles(thresholds),
    )
    taker = FeedbackTaker(folder, detector, weights)
    with tqdm(total=len(decisions), desc="feedback", unit="image", disable=None) as bar:
        change = taker.take(
            predictions,
            decisions,
            class_name=options.class_name,
            complete=options.complete,
            tell_done=bar.update,
        )
    images = {**taker.images, **{image.digest: image for image in change.version.images}}
    lines = change_lines(change, list(images.values()), options.dry_run)
    if not change.version.images:
        print("nothing new: all of it was said before, or is in a bank or in the calibration already")
    elif options.dry_run:
        print("\n".join(["this would change (--dry-run):", *lines]))
    else:
        watched = _watched(detector, change)
        reference = None if detector.reference is None or not watched else detector.reference.without_scores(watched)
        save_version(change.version, change.rows, change.digests, folder, reference)
        if watched:
            lines.append(
                f"note: unimmad monitor compares later scores of {some(sorted(watched))} among themselves from now on"
            )
        print("\n".join(lines))
        print(f"version {change.version.number} of {folder / 'feedback'}; --undo takes it back")


def _tiles(thresholds: Thresholds | None) -> str | None:
    """As ``Detector.from_checkpoint`` takes those that the thresholds hold for; None: the checkpoint's own."""
    tiles = None if thresholds is None else thresholds.tiles
    if tiles is None:
        return None
    return f"{tiles.size}:{tiles.overlap}{':whole' if tiles.whole else ''}" if tiles.size else "none"


def _watched(detector: Detector, change: Change) -> frozenset[str]:
    """Classes whose later scores monitoring can't compare with calibration's: those are of other banks, or below
    another threshold."""
    before, after = change.version.before.classes, change.version.after.classes
    moved = {name for name, found in after.items() if name not in before or before[name].value != found.value}
    moved |= {image.class_name for image in change.version.images if image.in_bank}
    return frozenset() if detector.reference is None else detector.reference.classes & moved
