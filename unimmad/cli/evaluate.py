"""The command ``unimmad evaluate``: from words typed to a report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from shutil import which

from unimmad.cli.calibrate import write_thresholds
from unimmad.cli.console import print_any_name
from unimmad.cli.evaluate_arguments import (
    EACH,
    check_together,
    chosen_checkpoint,
    chosen_data,
    chosen_modalities,
    chosen_tiles,
    chosen_workers,
    evaluation_parser,
)
from unimmad.cli.on_ranks import on_ranks
from unimmad.cli.renamed import with_new_names
from unimmad.config import SUGGESTED_RECIPE
from unimmad.data.location import DataFolder
from unimmad.data.reading.shard_cache import ShardCache
from unimmad.data.synthetic.default_set import SYNTHETIC_FOLDER
from unimmad.evaluation.each_modality import evaluate_each_modality, modality_table
from unimmad.evaluation.evaluate import Evaluation, evaluate_checkpoint
from unimmad.evaluation.scoring import named_device
from unimmad.ranks.exchange import Ranks
from unimmad.report.comparison import (
    Comparison,
    OtherReport,
    compare,
    difference_table,
    read_report,
    write_comparison,
)
from unimmad.report.report import Report
from unimmad.report.tables import screen_table
from unimmad.serialization.folder_lock import FolderLock

LOCK_NAME = "evaluation.lock"
"""In the output folder, while an evaluation goes on."""

RENAMED = {"--fresh": "--no-resume", "--spill": "--scratch-dir"}


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as ``argv`` say (None: those of the command line); 0, or 2 where something given is wrong."""
    parser = evaluation_parser()
    arguments = parser.parse_args(with_new_names(argv, RENAMED))
    print_any_name()

    def work(ranks: Ranks) -> None:
        check_together(parser, arguments)
        (write_thresholds if arguments.calibrate else _report)(arguments, ranks)

    again = "" if arguments.calibrate else "; the same command continues after the last finished class"
    return on_ranks(work, parser.prog, again)


def _report(arguments: argparse.Namespace, ranks: Ranks) -> None:
    compared = ranks.is_main and arguments.compare is not None
    other = OtherReport(str(arguments.compare), read_report(arguments.compare)) if compared else None
    if arguments.report is None:
        with FolderLock(LOCK_NAME, "evaluation") as lock:
            _evaluate(arguments, other, ranks, lock)
    elif ranks.is_main:
        _show(arguments, other)


def _show(arguments: argparse.Namespace, other: OtherReport | None) -> None:
    report = read_report(arguments.report)
    comparison = None if other is None else compare(report, other)
    _print_report(report, comparison)
    if comparison is not None and arguments.output_dir is not None:
        _print_tables(write_comparison(comparison, arguments.output_dir))


def _evaluate(arguments: argparse.Namespace, other: OtherReport | None, ranks: Ranks, lock: FolderLock) -> None:
    checkpoint = chosen_checkpoint(arguments, ranks)
    if arguments.mask_resize and checkpoint.recipe.evaluation.resolution == "original":
        raise ValueError("--mask-resize: of no effect at the images' original resolution; leave out one or the other")
    data = chosen_data(arguments, checkpoint)
    output = arguments.output_dir or checkpoint.folder.parent.parent / "evaluation"
    if ranks.is_main:
        lock.take(output)
    # Not the checkpoint's cache folder: a file that others may have written names no place to write to.
    cache = ShardCache.of(arguments.cache_dir, checkpoint.recipe.data.cache_gb)
    run = partial(
        evaluate_checkpoint,
        checkpoint,
        data,
        device=named_device(arguments.device),
        workers=chosen_workers(arguments, checkpoint),
        split=arguments.split,
        mask_resize=arguments.mask_resize,
        precision=arguments.precision,
        no_resume=arguments.no_resume,
        only_same_data=arguments.output_dir is None,
        only_same_step=arguments.output_dir is None and arguments.checkpoint == checkpoint.folder,
        scratch_dir=arguments.scratch_dir,
        published=arguments.published,
        other=other,
        cache=cache,
        on_error=arguments.on_error,
        roi=arguments.roi,
        tiles=chosen_tiles(arguments.tiles),
        ranks=ranks,
    )
    if arguments.modalities == EACH:
        each = evaluate_each_modality(run, data, arguments.split, output, cache)
        if each is not None:
            _print(each.whole)
            print(modality_table(each).to_text())
            _print_tables(each.tables)
        return
    evaluation = run(output=output, modalities=chosen_modalities(arguments.modalities))
    if evaluation is not None:
        _print(evaluation)
        print(next_steps(arguments.checkpoint or checkpoint.folder.parent.parent, data))


def _print(evaluation: Evaluation) -> None:
    _print_report(evaluation.report, evaluation.comparison)
    _print_tables(evaluation.tables)
    overview = "" if evaluation.overview is None else f", or at a glance {evaluation.overview}"
    print(f"page     {evaluation.page}{overview}")


def next_steps(checkpoint: Path, data: Sequence[DataFolder]) -> str:
    """What to try after the report of ``checkpoint`` on ``data``, a line each; one's own data after the synthetic."""
    program = _program()
    lines = [f"predict  {program} predict --checkpoint {quote(str(checkpoint))} IMAGES"]
    if [folder.resolve() for folder in data if isinstance(folder, Path)] == [SYNTHETIC_FOLDER.resolve()]:
        lines.append(f"train    {program} shards FOLDER --target data/mine")
        lines.append(f"         {program} train --recipe {SUGGESTED_RECIPE} --data data/mine")
    return "\n".join(lines)


def _program() -> str:
    """``unimmad``, or where it lies if the shell would not find it there."""
    installed = Path(sys.executable).with_name("unimmad")
    return "unimmad" if which("unimmad") or not installed.is_file() else quote(os.path.relpath(installed))


def _print_report(report: Report, comparison: Comparison | None) -> None:
    print(screen_table(report))
    if comparison is not None:
        print(difference_table(comparison).to_text())


def _print_tables(tables: Sequence[Path]) -> None:
    for table in tables:
        print(f"table    {table}")
