"""Score one's own images: files, folders of images, or folders with one folder a modality.

    unimmad-predict --checkpoint runs/demo part.png more_parts/
    unimmad-predict --checkpoint runs/demo --class cookie test/crumbs        test/crumbs/rgb/*, test/crumbs/depth/*
    unimmad-predict --checkpoint runs/demo --modality rgb=a.png --modality depth=b.png
    unimmad-predict --checkpoint model.onnx more_parts/

Writes predictions.jsonl and a heat map for each sample, and prints the highest scores. Decisions need thresholds, which
evaluation with --calibrate writes beside the checkpoint.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from unimmad.checkpoint.folder import NO_VERIFY_HELP, newest_run
from unimmad.data.layouts.scan import Notices
from unimmad.prediction.detector import DEFAULT_BATCH_SIZE, Detector, Prediction
from unimmad.prediction.inputs import InputSample, find_samples, sample_of_modalities
from unimmad.prediction.output import PredictionFolder, screen_table

RUNS = Path("runs")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    notices = Notices()
    try:
        _check(options)
        detector = Detector.open(
            _checkpoint(options.checkpoint),
            data=options.data,
            device=options.device,
            precision=options.precision,
            verify=not options.no_verify,
        )
        samples = _samples(options, detector, notices)
        with PredictionFolder(options.output_dir, options.scale, options.maps) as folder:
            for prediction in _predictions(detector, samples, options):
                folder.add(prediction)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(screen_table(folder.rows, detector.thresholds))
    for notice in notices.lines:
        print(f"note: {notice}")
    print(f"results  {folder.lines_file}")
    if options.pictures:
        print(f"pictures {folder.pictures}/")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path, nargs="*", metavar="PATH", help="image files and folders")
    parser.add_argument(
        "--checkpoint", type=Path, help="run folder, checkpoint folder or .onnx file; default: the newest of runs/"
    )
    parser.add_argument("--no-verify", action="store_true", help=NO_VERIFY_HELP)
    parser.add_argument(
        "--modality", action="append", default=[], metavar="NAME=FILE", help="one image of one sample; instead of PATH"
    )
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="CLASS",
        help="of all samples: its threshold decides. CLASS or DATASET/CLASS; an unknown one goes by the threshold of "
        "all classes",
    )
    parser.add_argument("--output-dir", type=Path, default=Path("predictions"), help="default: %(default)s")
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        metavar="DIR",
        help="shard folder that tells the modalities, once for each; default: those it was trained on",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        help="default: as in evaluation, bf16 on a GPU that has it, else fp32; an .onnx file computes in fp32",
    )
    parser.add_argument("--batch-size", type=int, default=DEFAULT_BATCH_SIZE, help="default: %(default)s")
    parser.add_argument("--no-pictures", dest="pictures", action="store_false", help="no heat maps")
    parser.add_argument("--maps", action="store_true", help="also the anomaly maps, as float32 NPY")
    parser.add_argument(
        "--scale",
        type=float,
        help="map value at the bright end of the heat maps' colours, 0 at the dark one; default: half to one and a "
        "half of the threshold, or without one each map's own range",
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


def _predictions(
    detector: Detector, samples: Sequence[InputSample], options: argparse.Namespace
) -> Iterator[Prediction]:
    found = detector.predict_all(
        samples, class_name=options.class_name, batch_size=options.batch_size, with_pictures=options.pictures
    )
    return iter(tqdm(found, total=len(samples), desc="predict", unit="image", disable=None))
