"""Add a class to a checkpoint from 1 to 50 normal images, in seconds and without training; or remove one.

    unimmad add-class --checkpoint runs/mine --class bolt bolt/*.png   plain files or folders of images
    unimmad add-class --checkpoint runs/mine data/more                 every class of shards, or of a dataset's folder
    unimmad add-class --checkpoint runs/mine --class bolt --images 16 data/more
    unimmad add-class --checkpoint runs/mine --remove bolt
    unimmad add-class --checkpoint runs/mine                           those that were added

The class has a bank of the frozen teacher's features of its images, beside the model's own map, in the checkpoint's
folder. Its threshold is borrowed from other classes and promises no false-alarm rate. See docs/continual.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from unimmad.checkpoint.added_classes import FOLDER, AddedClass, load_added, remove_added, save_added
from unimmad.checkpoint.folder import NO_VERIFY_HELP, find_checkpoint, newest_run
from unimmad.checkpoint.loading import LoadedCheckpoint, load_checkpoint
from unimmad.checkpoint.normal_maps import load_normal_maps
from unimmad.checkpoint.thresholds import load_thresholds
from unimmad.cli.console import run_command
from unimmad.data.layouts.scan import Notices
from unimmad.evaluation.scoring import named_device
from unimmad.inference.adding import (
    MOST_IMAGES,
    ClassAdder,
    check_new,
    chosen_images,
    namesakes_note,
    shared_images,
)
from unimmad.inference.catalogue_sources import checkpoint_catalogue
from unimmad.inference.new_class import NewClass, new_classes
from unimmad.serialization.text import one_line

RUNS = Path("runs")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = adding_parser()
    options = parser.parse_args(arguments)
    return run_command(parser.prog, partial(_run, options), if_interrupted="; what was added before stays")


def adding_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "paths",
        type=Path,
        nargs="*",
        metavar="PATH",
        help="image files and folders (one folder a modality where there are several), shards, or a dataset's folder "
        "or table as unimmad shards takes it, of which the normal training images count; none: list what was added",
    )
    parser.add_argument("--checkpoint", type=Path, help="run or checkpoint folder; default: the newest of runs/")
    parser.add_argument("--no-verify", action="store_true", help=NO_VERIFY_HELP)
    parser.add_argument(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="of the images, DATASET/CLASS where the model knows a class of that name; of shards and datasets the one "
        "meant (CLASS or DATASET/CLASS; default: all)",
    )
    parser.add_argument(
        "--images", type=int, metavar="N", help=f"draw so many of them (default: all, {MOST_IMAGES} at most)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draw; default: %(default)s")
    parser.add_argument("--replace", action="store_true", help="put a class in place of one that was added before")
    parser.add_argument("--remove", metavar="NAME", help="remove an added class, DATASET/CLASS or CLASS")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU where there is one")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: bf16 on a GPU that has it, else fp32")
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.remove is not None and (options.paths or options.class_name or options.replace):
        raise ValueError("--remove NAME takes nothing but --checkpoint beside it")
    checkpoint = load_checkpoint(_checkpoint(options.checkpoint), verify=not options.no_verify)
    added = load_added(checkpoint.folder, checkpoint.weights_digest)
    if options.remove is not None:
        print(f"removed  {remove_added(checkpoint.folder, _named(options.remove, added))}")
    elif options.paths:
        _add(options, checkpoint, added)
    else:
        for one in added:
            print(f"{one_line(one.name)}: {one.in_words()}")
        if not added:
            print(f"no class was added to {checkpoint.folder}")


def _checkpoint(given: Path | None) -> Path:
    run = given or newest_run(RUNS)
    if run is None:
        raise ValueError(f"no run in {RUNS}/; give a run or a checkpoint with --checkpoint")
    return find_checkpoint(run)


def _named(name: str, added: Sequence[AddedClass]) -> str:
    found = [one.name for one in added if name in (one.name, one.name.partition("/")[2])]
    if len(found) != 1:
        known = ", ".join(one.name for one in added) or "none"
        raise ValueError(f"--remove {name}: {'say which' if found else 'no such class was added'}; added: {known}")
    return found[0]


def _check_namesakes(found: Sequence[NewClass], known: Sequence[str], added: Sequence[str], notices: Notices) -> None:
    """Tell of classes that share their names with others; one that is put in its own place is none of those.

    Raises:
        ValueError: as ``namesakes_note``.
    """
    met = list(known)
    for one in found:
        if one.name not in added and (note := namesakes_note(one, met)):
            notices.add(note)
        met.append(one.name)


def _add(options: argparse.Namespace, checkpoint: LoadedCheckpoint, added: Sequence[AddedClass]) -> None:
    missing = [path for path in options.paths if not path.exists()]
    if missing:
        raise ValueError(f"{missing[0]} does not exist; give images, shards or a dataset's folder")
    thresholds, notices = load_thresholds(checkpoint.folder), Notices()
    catalogue = checkpoint_catalogue(checkpoint, None, thresholds)
    found = new_classes(options.paths, options.class_name, catalogue, notices)
    names = [known.name for known in added]
    for one in found:
        check_new(one.name, catalogue, names, options.replace)
    _check_namesakes(found, [*catalogue.classes, *names], names, notices)
    chosen = [chosen_images(one, options.images, options.seed) for one in found]
    total = sum(2 * len(one.samples) for one in chosen)
    adder = ClassAdder(
        checkpoint,
        catalogue,
        thresholds,
        load_normal_maps(checkpoint.folder),
        device=named_device(options.device),
        precision=options.precision,
    )
    others = {known.name: known for known in added}
    with tqdm(total=total, desc="add-class", unit="image", disable=None) as bar:
        for one in chosen:
            done = adder.add(one, bar.update, notices)
            save_added(done, checkpoint.folder)
            for note in shared_images(done, others.values()):
                notices.add(note)
            others[done.name] = done
            tqdm.write(f"{one_line(done.name)}: {done.in_words()}")
    for note in notices.lines:
        print(f"note: {one_line(note)}")
    print(f"added to {checkpoint.folder / FOLDER}")
