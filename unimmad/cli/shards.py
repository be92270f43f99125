"""Make a folder of shards from datasets on disk, or from the synthetic set.

    unimmad shards SOURCE... --target DIR
    unimmad shards --list
    unimmad shards synthetic --target DIR
    unimmad shards verify DIR

SOURCE is a benchmark's folder as its authors publish it (--list shows which), or one's own images: a folder of
classes in the layout of MVTec-AD (CLASS/train/good/*, CLASS/test/DEFECT/*, CLASS/ground_truth/DEFECT/*) or its
multi-modal sibling (CLASS/SPLIT/DEFECT/MODALITY/*, masks in gt), or a CSV or JSON-lines table. See docs/data.md.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from unimmad.cli.console import run_command
from unimmad.cli.renamed import with_new_names
from unimmad.config import SUGGESTED_RECIPE
from unimmad.data.index import Index
from unimmad.data.layouts import LAYOUTS, FoundSet, find_sets, layout_table
from unimmad.data.layouts.calibration import set_aside
from unimmad.data.layouts.layout import OWN_CALIBRATION_FRACTION
from unimmad.data.layouts.source_set import SourceSet
from unimmad.data.modality import parse_modality, reading_of
from unimmad.data.writing.shards import SHARD_BYTES, write_shards
from unimmad.data.writing.verify import verify_folder
from unimmad.ranks.launcher import program
from unimmad.serialization.text import ListedError, error_lines, printable

SYNTHETIC = "synthetic"
VERIFY = "verify"
RENAMED = {"--field": "--domain", "--calibration-share": "--calibration-fraction"}
NOTES_SHOWN = 100
MOST_LETTERS = 2000
"""Of a message: names of files and columns may have any length."""
SAMPLES_PER_WORKER = 64
"""Fewer are not worth the start of a process."""


def main(arguments: Sequence[str] | None = None) -> int:
    argv = with_new_names(arguments, RENAMED)
    if argv[:1] == [VERIFY]:
        return _verify(argv[1:])
    parser = shards_parser()
    options = parser.parse_intermixed_args(argv)
    return run_command(parser.prog, partial(_shards, options), told=_told)


def _shards(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    index, notices = _make(options)
    seconds = time.perf_counter() - started
    try:
        if options.audit:
            _print_audit(options.target, options.workers)
        _print_summary(index, notices, options.target, seconds)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"; the shards in {options.target} are complete") from None


def _told(error: Exception) -> str:
    return error_lines(error, MOST_LETTERS) if isinstance(error, ListedError) else _line(error)


class _ListLayouts(argparse.Action):
    """Acts at once, as ``--help`` does, so that no SOURCE is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(layout_table())
        parser.exit()


def shards_parser() -> argparse.ArgumentParser:
    """All options but those of ``verify``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help=f"a dataset's folder or table, or {SYNTHETIC!r}")
    parser.add_argument("--list", action=_ListLayouts, nargs=0, help="show the known layouts and leave")
    parser.add_argument("--target", type=Path, required=True, metavar="DIR", help="the shard folder to make")
    parser.add_argument("--name", help="the dataset's name (default: the benchmark's or folder's); one SOURCE only")
    parser.add_argument("--domain", help="industry, medicine, ... (default: the benchmark's, or unspecified)")
    parser.add_argument(
        "--layout", choices=("auto", *LAYOUTS), default="auto", help="of SOURCE (default: as its folders tell)"
    )
    parser.add_argument(
        "--calibration-fraction",
        type=float,
        metavar="FRACTION",
        help="of each class's train/good, about so much is set aside for calibrating thresholds; --seed chooses which "
        f"(default: {OWN_CALIBRATION_FRACTION} of one's own images, 0 of benchmarks)",
    )
    parser.add_argument(
        "--modality",
        action="append",
        default=[],
        metavar="NAME=KIND",
        help="rgb[:LOW:HIGH], gray[:LOW:HIGH], skip or depth[:UNIT[:INVALID]]; once for each modality, with one SOURCE "
        "only. LOW, HIGH: the stored values that are read as 0 and 1 "
        "(default: the type's range, or where training images use less than 1/8 of it, what they use). UNIT: what "
        "the stored value 1 is, m, cm, mm, um, or a number of these, such as 0.25mm; disparity, or METRES/disparity. A "
        "number alone is the metres of 1 in real numbers, of the type's largest value in integers; default 1 "
        "(integers: 0.5). INVALID: the stored value that says 'not measured', or none; default 0 in integers, and in "
        "real numbers where no value lies near it. Otherwise the folder's name tells the kind.",
    )
    parser.add_argument("--allow-missing", action="store_true", help="keep samples that lack a modality")
    parser.add_argument(
        "--on-error",
        choices=["stop", "skip"],
        default="stop",
        help="of files that can't be read or don't fit; stop: look at all, list what is wrong, write nothing; skip: "
        "leave their samples out and list them (default: stop)",
    )
    parser.add_argument(
        "--allow-duplicates", action="store_true", help="write test images that are training images as well"
    )
    parser.add_argument(
        "--allow-odd-masks",
        action="store_true",
        help="write masks that mark nothing or nearly all of an anomalous image, or part of a normal one",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a shard folder of that name")
    parser.add_argument("--shard-mb", type=float, default=SHARD_BYTES / 2**20, help="size (default: %(default)g)")
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that read and check; the bytes are the same (default: by cores and samples)",
    )
    parser.add_argument(
        "--no-audit", dest="audit", action="store_false", help="don't look for what is odd in the shards once written"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help=f"of {SYNTHETIC} and of the calibration split (default: %(default)s)"
    )
    return parser


def _verify(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog=f"{program()} {VERIFY}", description="Hold shard folders against their indexes, byte by byte."
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a shard folder")
    problems = 0
    for folder in parser.parse_args(argv).folders:
        try:
            found = verify_folder(folder)
        except (ValueError, OSError) as error:
            found = [str(error)]
        for problem in found:
            print(f"{parser.prog}: {_line(problem)}", file=sys.stderr)
        if not found:
            print(f"{folder}: every shard, sample and member is as the index says")
        problems += len(found)
    return 2 if problems else 0


def _make(options: argparse.Namespace) -> tuple[Index, list[str]]:
    if len(options.sources) > 1 and (options.name or options.modality):
        raise ValueError(
            "--name and --modality speak of one SOURCE; make a shard folder for each (training joins them)"
        )
    if not 0 < options.shard_mb < math.inf:
        raise ValueError(f"--shard-mb {options.shard_mb:g}: must be a finite number above 0")
    found = [item for source in options.sources for item in _find(source, options)]
    sets = [item.source for item in found]
    index = write_shards(
        sets,
        options.target,
        shard_bytes=int(options.shard_mb * 2**20),
        allow_missing=options.allow_missing,
        overwrite=options.overwrite,
        workers=_workers(options.workers, sets),
        on_error=options.on_error,
        allow_duplicates=options.allow_duplicates,
        allow_odd_masks=options.allow_odd_masks,
    )
    return index, [notice for item in found for notice in item.notices]


def _print_audit(target: Path, workers: int | None) -> None:
    """What an audit in brief warns of; the shards are complete whatever becomes of it."""
    try:
        from unimmad.audit.brief import brief_audit  # imports PyTorch's models, which listing layouts need not wait for

        lines = list(brief_audit(target, workers))
    except (ValueError, OSError) as error:
        lines = [f"the audit failed: {_line(error)}"]
    except KeyboardInterrupt:
        lines = ["the audit was interrupted; the shards are complete"]
    for line in lines:
        print(line)
    if lines:
        print(f"more of that: unimmad audit {target}")


def _workers(given: int | None, sets: Sequence[SourceSet]) -> int:
    """One core needs no process beside this one."""
    if given is not None:
        if given < 0:
            raise ValueError(f"--workers {given}: must be 0 or more")
        return given
    samples = sum(len(found.samples) for found in sets)
    workers = min(len(os.sched_getaffinity(0)), samples // SAMPLES_PER_WORKER)
    return workers if workers > 1 else 0


def _find(source: str, options: argparse.Namespace) -> list[FoundSet]:
    if source == SYNTHETIC:
        if options.name or options.modality:
            raise ValueError(f"--name and --modality do not apply to {SYNTHETIC}")
        from unimmad.data.synthetic import synthetic_sets

        share = options.calibration_fraction or 0.0
        sets = synthetic_sets(options.seed)
        return [
            FoundSet(replace(item, samples=tuple(set_aside(item.samples, share, options.seed))), ()) for item in sets
        ]
    return find_sets(
        Path(source),
        name=options.name,
        field=options.domain,
        layout=options.layout,
        modalities=[parse_modality(text) for text in options.modality],
        calibration_fraction=options.calibration_fraction,
        seed=options.seed,
    )


def _line(text: object) -> str:
    """One line, of a long one the beginning and the end: what is wrong, and what to do."""
    line = printable(str(text))
    return line if len(line) <= MOST_LETTERS else f"{line[: MOST_LETTERS // 2]} ... {line[-MOST_LETTERS // 2 :]}"


def _print_summary(index: Index, notices: Sequence[str], target: Path, seconds: float) -> None:
    counts = Counter((sample.dataset, sample.class_name, sample.split) for sample in index.samples)
    for name, entry in index.datasets.items():
        print(f"{name} (domain: {entry.field})")
        for modality in entry.modalities:
            print(f"  slot {modality.slot}: {modality.name}, {modality.kind}{reading_of(modality)}")
        for class_name in sorted({found for dataset, found, _ in counts if dataset == name}):
            train, test, aside = (counts[name, class_name, split] for split in ("train", "test", "calibration"))
            print(
                f"  class {printable(class_name)}: {train} train, {test} test"
                + (f", {aside} calibration" if aside else "")
                + (f", region of interest: {entry.roi[class_name].in_words()}" if class_name in entry.roi else "")
            )
    for notice in notices[:NOTES_SHOWN]:
        print(f"note: {_line(notice)}")
    if len(notices) > NOTES_SHOWN:
        print(f"note: and {len(notices) - NOTES_SHOWN} more")
    found = index.duplicates
    if found and (found.exact or found.near):
        print(
            f"duplicates: {found.exact} samples, {found.trained_and_tested} of them trained on and tested with; "
            f"{found.near} pairs nearly the same"
        )
    size = sum(shard.bytes for shard in index.shards) / 2**20
    print(f"{target}: {len(index.samples)} samples, {len(index.shards)} shards, {size:.1f} MiB, {seconds:.1f} s")
    print(f"next: unimmad train --recipe {SUGGESTED_RECIPE} --data {target}")
