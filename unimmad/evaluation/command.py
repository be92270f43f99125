"""The command ``unimmad-evaluate``, which ``tools/evaluate.py`` is too: from words typed to a report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from unimmad.data.shard_cache import ShardCache
from unimmad.evaluation.arguments import (
    EACH,
    chosen_checkpoint,
    chosen_data,
    chosen_modalities,
    chosen_workers,
    evaluation_parser,
)
from unimmad.evaluation.comparison import compare, read_report, screen_comparison, write_comparison
from unimmad.evaluation.each_modality import EachModality, evaluate_each_modality, screen_modalities
from unimmad.evaluation.evaluate import Evaluation, evaluate_checkpoint
from unimmad.evaluation.report import Report
from unimmad.evaluation.scoring import named_device
from unimmad.evaluation.screen import screen_table
from unimmad.evaluation.thresholds import save_thresholds
from unimmad.prediction.calibrate import calibrate, describe


def main(words: Sequence[str] | None = None) -> int:
    """Evaluate as ``words`` say (None: those of the command line); 0, or 2 where something given is wrong."""
    parser = evaluation_parser()
    arguments = parser.parse_args(words)
    try:
        if arguments.calibrate:
            _calibrate(arguments)
        else:
            _report(arguments)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "" if arguments.calibrate else "; the same command goes on behind the last finished class"
        print(f"{parser.prog}: interrupted{again}", file=sys.stderr)
        return 130
    return 0


def _calibrate(arguments: argparse.Namespace) -> None:
    checkpoint = chosen_checkpoint(arguments)
    thresholds = calibrate(
        checkpoint,
        chosen_data(arguments, checkpoint),
        arguments.false_alarm_rate,
        device=named_device(arguments.device),
        workers=chosen_workers(arguments, checkpoint),
        cache=ShardCache.of(arguments.cache_dir, checkpoint.recipe.data.cache_gb),
        on_error=arguments.on_error,
    )
    path = save_thresholds(thresholds, checkpoint.folder)
    print(describe(thresholds))
    print(f"thresholds {path}")


def _report(arguments: argparse.Namespace) -> None:
    other = None if arguments.compare is None else read_report(arguments.compare)
    if arguments.report is None:
        report, output = _evaluate(arguments)
    else:
        report, output = read_report(arguments.report), arguments.output_dir
        print(screen_table(report))
    if other is not None:
        _compare(report, other, str(arguments.compare), output)


def _evaluate(arguments: argparse.Namespace) -> tuple[Report, Path]:
    checkpoint = chosen_checkpoint(arguments)
    data = chosen_data(arguments, checkpoint)
    output = arguments.output_dir or checkpoint.folder.parent.parent / "evaluation"
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
        fresh=arguments.fresh,
        spill_to=arguments.spill,
        published=arguments.published,
        cache=cache,
        on_error=arguments.on_error,
    )
    if arguments.modalities == EACH:
        each = evaluate_each_modality(run, data, arguments.split, output, cache)
        _print(each.whole)
        _print_modalities(each)
        return each.whole.report, output
    evaluation = run(output=output, modalities=chosen_modalities(arguments.modalities))
    _print(evaluation)
    return evaluation.report, output


def _compare(report: Report, other: Report, name: str, output: Path | None) -> None:
    comparison = compare(report, other, name)
    print(screen_comparison(comparison))
    if output is not None:
        for path in write_comparison(comparison, output):
            print(f"table    {path}")


def _print_modalities(each: EachModality) -> None:
    print(screen_modalities(each))
    for table in each.tables:
        print(f"table    {table}")


def _print(evaluation: Evaluation) -> None:
    print(screen_table(evaluation.report))
    for table in evaluation.tables:
        print(f"table    {table}")
    if evaluation.overview is not None:
        print(f"picture  {evaluation.overview}")
        print(f"pictures {evaluation.class_pictures[0].parent}/ (one a class)")
