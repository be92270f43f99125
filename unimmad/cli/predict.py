"""Score one's own images: files, folders of images, or folders with one folder a modality.

    unimmad predict --checkpoint runs/demo part.png more_parts/
    unimmad predict --checkpoint runs/demo --class cookie test/crumbs        test/crumbs/rgb/*, test/crumbs/depth/*
    unimmad predict --checkpoint runs/demo --modality rgb=a.png --modality depth=b.png
    unimmad predict --checkpoint model.onnx more_parts/

Writes predictions.jsonl and a heat map for each sample, and prints the highest scores. Decisions need thresholds, which
unimmad calibrate writes beside the checkpoint. An interrupted prediction keeps what it has scored, and the
same command goes on with the others.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Container, Iterator, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from unimmad.checkpoint.folder import newest_run
from unimmad.cli.console import run_command
from unimmad.cli.opening import add_detector_options, open_detector
from unimmad.data.layouts.scan import Notices
from unimmad.inference.detector import DEFAULT_BATCH_SIZE, Detector
from unimmad.inference.engines import OnnxEngine
from unimmad.inference.inputs import InputSample, find_samples, sample_of_modalities
from unimmad.inference.output import PredictionFolder, screen_table
from unimmad.inference.prediction import Prediction
from unimmad.inference.reading_ahead import OnSkip
from unimmad.inference.resume import prediction_fingerprint, sample_fingerprints
from unimmad.serialization.text import ListedError, itemised, one_line

RUNS = Path("runs")
MOST_SKIPPED = 20
"""Samples that the summary names."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = prediction_parser()
    options = parser.parse_args(arguments)
    return run_command(parser.prog, partial(_predict, options, parser.prog))


def _predict(options: argparse.Namespace, program: str) -> None:
    _check(options)
    detector = open_detector(_checkpoint(options.checkpoint), options)
    detector.measures = options.monitor
    notices = Notices()
    samples = _samples(options, detector, notices)
    skipped: dict[str, ValueError] = {}

    def skip(name: str, error: ValueError) -> None:
        skipped[name] = error

    on_skip = skip if options.on_error == "skip" else None
    fingerprints = sample_fingerprints(samples, _prediction_fingerprint(options, detector))
    folder = PredictionFolder(options.output_dir, fingerprints, options.scale, options.maps, _reference(detector))
    try:
        with folder:
            for prediction in _predictions(detector, samples, folder.rows, on_skip, options):
                folder.add(prediction)
            if not folder.rows:
                raise ValueError(f"none of {len(samples)} could be scored")
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{error}{_how_to_go_on(folder, len(samples))}") from None
    except ValueError as error:
        left = [sample for sample in samples if sample.name not in folder.rows]
        told = error if on_skip else _all_that_is_broken(detector, left, options, error)
        raise type(told)(f"{told}{_how_to_go_on(folder, len(samples))}") from None
    finally:
        if skipped:
            title = f"{program}: skipped {len(skipped)} of {len(samples)}, which could not be scored"
            print(itemised(title, [f"{name}: {error}" for name, error in skipped.items()]), file=sys.stderr)
    _print(folder, detector, options, [*_skipped(list(skipped), len(samples)), *notices.lines])


def _all_that_is_broken(
    detector: Detector, left: Sequence[InputSample], options: argparse.Namespace, first: ValueError
) -> ValueError:
    """``first``, or where more of the samples can't be read, what is wrong with all of them."""
    problems = [f"{name}: {error}" for name, error in detector.problems(left, class_name=options.class_name)]
    if len(problems) < 2:
        return first
    return ListedError(itemised(f"{len(problems)} samples can't be scored", problems) + "\nMend or remove these")


def _print(folder: PredictionFolder, detector: Detector, options: argparse.Namespace, notes: Sequence[str]) -> None:
    engine, rows = detector.engine, list(folder.rows.values())
    print(screen_table(rows, detector.thresholds, engine.misses_class, isinstance(engine, OnnxEngine)))
    for note in notes:
        print(f"note: {one_line(note)}")
    print(f"results  {folder.lines_file}")
    if options.pictures:
        print(f"pictures {folder.pictures}/")


def _skipped(names: Sequence[str], total: int) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - MOST_SKIPPED} more, named above" if len(names) > MOST_SKIPPED else ""
    return [f"{len(names)} of {total} skipped, which could not be scored: {', '.join(names[:MOST_SKIPPED])}{more}"]


def _how_to_go_on(folder: PredictionFolder, total: int) -> str:
    """Empty where nothing is done yet."""
    if not folder.rows:
        return ""
    return (
        f"; {len(folder.rows)} of {total} are scored, in {folder.partial_file}: the same command goes on with the "
        "others, with --on-error skip over what can't be scored"
    )


def prediction_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="*", metavar="PATH", help="image files and folders")
    parser.add_argument(
        "--checkpoint", type=Path, help="run folder, checkpoint folder or .onnx file; default: the newest of runs/"
    )
    add_detector_options(parser)
    parser.add_argument(
        "--modality", action="append", default=[], metavar="NAME=FILE", help="one image of one sample; instead of PATH"
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="CLASS",
        help="of all samples: its threshold decides. CLASS or DATASET/CLASS; an unknown one goes by the threshold of "
        "all classes, where the method's scores do not depend on the class",
    )
    parser.add_argument("--output-dir", type=Path, default=Path("predictions"), help="default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=DEFAULT_BATCH_SIZE, help="default: %(default)s")
    parser.add_argument(
        "--on-error",
        choices=["stop", "skip"],
        default="stop",
        help="at an image that can't be read or does not fit; skip: leave its sample out and say so (default: stop)",
    )
    parser.add_argument("--no-pictures", dest="pictures", action="store_false", help="no heat maps")
    parser.add_argument(
        "--maps",
        action="store_true",
        help="also the anomaly maps, as float32 NPY of whole size (pictures have 512 pixels at most)",
    )
    parser.add_argument(
        "--no-monitor",
        dest="monitor",
        action="store_false",
        help="don't write what unimmad monitor compares with calibration, which costs a pass through the teacher",
    )
    parser.add_argument(
        "--scale",
        type=float,
        help="map value at the bright end of the heat maps' colours, 0 at the dark one; default: the "
        "threshold in the middle; without one the highest score of normal images, which training keeps with the "
        "checkpoint",
    )
    return parser


def _check(options: argparse.Namespace) -> None:
    if bool(options.paths) == bool(options.modality):
        raise ValueError("give either files and folders, or --modality NAME=FILE for each image of one sample")
    if options.batch_size < 1:
        raise ValueError(f"--batch-size {options.batch_size} must be 1 or more")
    if options.scale is not None and not 0 < options.scale < math.inf:
        raise ValueError(f"--scale {options.scale:g} must be a finite number above 0")
    if options.scale is not None and not options.pictures:
        raise ValueError("--scale is for the heat maps, which --no-pictures leaves out: give one of them")


def _checkpoint(given: Path | None) -> Path:
    if given is not None:
        return given
    run = newest_run(RUNS)
    if run is None:
        raise ValueError(f"no run in {RUNS}/; give a run, a checkpoint or an .onnx file with --checkpoint")
    return run


def _samples(options: argparse.Namespace, detector: Detector, notices: Notices) -> list[InputSample]:
    if options.modality:
        return [sample_of_modalities(options.modality)]
    return find_samples(options.paths, detector.catalogue.modality_names, notices)


def _prediction_fingerprint(options: argparse.Namespace, detector: Detector) -> str:
    argv = {name: getattr(options, name) for name in ("class_name", "pictures", "maps", "scale")}
    if (reference := _reference(detector)) is not None:
        argv["reference"] = reference
    return prediction_fingerprint(detector, argv)


def _reference(detector: Detector) -> str | None:
    """The calibration that images' statistics are compared with, where they are."""
    return detector.reference.digest if detector.measures and detector.reference is not None else None


def _predictions(
    detector: Detector,
    samples: Sequence[InputSample],
    done: Container[str],
    on_skip: OnSkip | None,
    options: argparse.Namespace,
) -> Iterator[Prediction]:
    """Of the samples that are not ``done`` yet."""
    left = [sample for sample in samples if sample.name not in done]
    found = detector.predict_all(
        left,
        class_name=options.class_name,
        batch_size=options.batch_size,
        with_pictures=options.pictures,
        on_skip=on_skip,
    )
    bar = tqdm(found, total=len(samples), initial=len(samples) - len(left), desc="predict", unit="image", disable=None)
    return iter(bar)
