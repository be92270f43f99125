"""The options by which a command opens a detector, and the detector that they say."""

from __future__ import annotations

import argparse
from pathlib import Path

from unimmad.checkpoint.folder import NO_VERIFY_HELP
from unimmad.cli.evaluate_arguments import TILES_HELP
from unimmad.inference.detector import Detector


def add_detector_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """All but --checkpoint, which not every command must be given."""
    parser.add_argument("--no-verify", action="store_true", help=NO_VERIFY_HELP)
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        metavar="DIR",
        help="shard folder that tells the modalities, once for each; default: those it was trained on",
    )
    parser.add_argument(
        "--roi",
        type=Path,
        metavar="FILE|DIR|none",
        help="where to look, in place of the regions of interest that go with the thresholds or the trained data: a "
        "PNG or JSON of all classes, a folder of CLASS.png or CLASS.json, or none",
    )
    parser.add_argument("--tiles", metavar="SIZE[:OVERLAP[:whole]]|none", help=TILES_HELP)
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument(
        "--precision",
        choices=["fp32", "bf16"],
        help="default: as in evaluation, bf16 on a GPU that has it, else fp32; an .onnx file computes in fp32",
    )


def open_detector(checkpoint: Path, options: argparse.Namespace) -> Detector:
    """The detector of a run, a checkpoint or an exported file.

    Raises:
        ValueError: as ``Detector.open``.
    """
    return Detector.open(
        checkpoint,
        data=options.data,
        device=options.device,
        precision=options.precision,
        verify=not options.no_verify,
        roi=options.roi,
        tiles=options.tiles,
    )
