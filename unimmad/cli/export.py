"""Export a checkpoint for the images of one dataset, as one file for other runtimes.

    unimmad export --checkpoint runs/demo --dataset solids --format onnx --target solids.onnx

Inside are normalisation, network, map, blur and score; thresholds, classes and modalities are in the file's metadata.
The batch may be of any size. Images come decoded and resized (see docs/predict.md); ``unimmad predict`` does that.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import unimmad
from unimmad.checkpoint.added_classes import load_added
from unimmad.checkpoint.folder import NO_VERIFY_HELP, find_checkpoint
from unimmad.checkpoint.grown_banks import with_feedback
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.thresholds import load_thresholds
from unimmad.cli.console import run_command
from unimmad.inference.catalogue_sources import checkpoint_catalogue
from unimmad.inference.export.files import write_onnx, write_torch
from unimmad.inference.export.metadata import ExportMetadata
from unimmad.inference.export.program import build_program
from unimmad.serialization.atomic_write import remove_leftovers

WRITERS = {"onnx": write_onnx, "torch": write_torch}
SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = export_parser()
    options = parser.parse_args(arguments)
    return run_command(parser.prog, partial(_export, options))


def export_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="run or checkpoint folder")
    parser.add_argument("--no-verify", action="store_true", help=NO_VERIFY_HELP)
    parser.add_argument("--format", choices=list(WRITERS), required=True, help="of the file")
    parser.add_argument("--target", type=Path, required=True, metavar="FILE", help="ends in .onnx or .pt2")
    parser.add_argument("--dataset", help="whose modalities the file takes; needed where there are several")
    parser.add_argument("--modality", action="append", metavar="NAME", help="some of its modalities; default: all")
    parser.add_argument(
        "--data", type=Path, nargs="+", help="shard folders that tell the modalities; default: those it was trained on"
    )
    return parser


def _export(options: argparse.Namespace) -> None:
    wanted = SUFFIXES[options.format]
    if options.target.suffix != wanted:
        raise ValueError(f"--target {options.target}: call it *{wanted} for --format {options.format}")
    checkpoint = load_checkpoint(find_checkpoint(options.checkpoint), verify=not options.no_verify)
    thresholds = load_thresholds(checkpoint.folder)
    added = [one.name for one in load_added(checkpoint.folder, checkpoint.weights_digest)]
    checkpoint = with_feedback(checkpoint)
    program, metadata = build_program(
        checkpoint,
        checkpoint_catalogue(checkpoint, options.data, thresholds),
        thresholds,
        dataset=options.dataset,
        modality_names=options.modality,
        added=added,
        version=unimmad.__version__,
    )
    print(f"writing {options.target}: minutes for a large model", file=sys.stderr, flush=True)
    remove_leftovers(options.target)
    WRITERS[options.format](program, metadata, options.target)
    _print(metadata, options)
    if added:
        print(f"note: not in the file, which is told no class: {', '.join(added)}, added later; use the checkpoint")


def _print(metadata: ExportMetadata, options: argparse.Namespace) -> None:
    size = metadata.image_size
    names = ", ".join(f"{modality.name} ({modality.kind})" for modality in metadata.modalities)
    print(f"input    images: float32 [batch, {len(metadata.modalities)}, 3, {size}, {size}], {names}")
    print(f"outputs  maps: float32 [batch, {size}, {size}]; scores: float32 [batch]")
    print(f"classes  {', '.join(metadata.classes)}")
    if metadata.misses_class:
        print(
            "note: no thresholds go with it: its method's scores depend on the class, of which the file is told "
            "nothing; it scores by the nearest class"
        )
    elif metadata.thresholds is None:
        print("note: no thresholds go with it: none of its classes is calibrated; calibrate first")
    elif note := metadata.thresholds.precision_note(metadata.precision):
        print(f"note: the file's samples are {note}")
    print(f"written  {options.target} ({options.target.stat().st_size / 2**20:.1f} MiB)")
    if options.format == "onnx":
        print(f"next: unimmad predict --checkpoint {options.target} PATH")
