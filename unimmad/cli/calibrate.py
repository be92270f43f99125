"""The command ``unimmad calibrate``: thresholds at a false-alarm rate, from normal images set aside."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from unimmad.checkpoint.calibration_scores import SCORES_NAME, by_class, save_scores
from unimmad.checkpoint.feedback import changing, check_settled, close, has_feedback
from unimmad.checkpoint.grown_banks import stored_banks
from unimmad.checkpoint.loading import LoadedCheckpoint
from unimmad.checkpoint.monitoring import MONITORING_NAME, save_reference
from unimmad.checkpoint.thresholds import save_thresholds
from unimmad.cli.console import print_any_name
from unimmad.cli.evaluate_arguments import (
    calibration_parser,
    chosen_checkpoint,
    chosen_data,
    chosen_tiles,
    chosen_workers,
)
from unimmad.cli.on_ranks import on_ranks
from unimmad.data.reading.shard_cache import ShardCache
from unimmad.data.reading.shard_set import ShardSet
from unimmad.evaluation.scoring import named_device
from unimmad.inference.calibration import calibrate, describe
from unimmad.inference.measuring import CalibrationFacts, made_reference
from unimmad.inference.missing_sensors import with_missing_sensors
from unimmad.ranks.exchange import Ranks


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate as ``argv`` say (None: those of the command line); 0, or 2 where something given is wrong."""
    parser = calibration_parser()
    arguments = parser.parse_args(argv)
    print_any_name()
    return on_ranks(partial(write_thresholds, arguments), parser.prog)


def write_thresholds(arguments: argparse.Namespace, ranks: Ranks) -> None:
    """Score the calibration split, write thresholds and what the images were like beside the checkpoint, and tell.

    Raises:
        ValueError: an option, the checkpoint or the data are wrong.
    """
    checkpoint = chosen_checkpoint(arguments, ranks)
    check_settled(checkpoint.folder)
    banks = stored_banks(checkpoint.folder)
    facts: list[CalibrationFacts] = []
    data, cache = (
        chosen_data(arguments, checkpoint),
        ShardCache.of(arguments.cache_dir, checkpoint.recipe.data.cache_gb),
    )
    calibrated = partial(
        calibrate,
        data=data,
        false_alarm_rate=arguments.false_alarm_rate,
        device=named_device(arguments.device),
        precision=arguments.precision,
        workers=chosen_workers(arguments, checkpoint),
        cache=cache,
        on_error=arguments.on_error,
        roi=arguments.roi,
        tiles=chosen_tiles(arguments.tiles),
        ranks=ranks,
    )
    thresholds = calibrated(checkpoint, facts=facts)
    if arguments.missing_sensors:
        shards = ShardSet.open(data, cache, checkpoint.trained_datasets)
        # Loaded again each time, since scoring changes a model's form.
        thresholds = with_missing_sensors(
            thresholds, shards, lambda kept: calibrated(_again(checkpoint, arguments, ranks), kept=kept)
        )
    if ranks.is_main:
        folder = checkpoint.folder
        scores = by_class((one.class_name, one.modalities, one.score) for one in facts)
        digests = by_class((one.class_name, one.modalities, one.digest) for one in facts)
        with changing(folder):
            check_settled(folder)
            if stored_banks(folder) != banks:
                raise ValueError(f"{folder}: feedback or add-class changed its banks meanwhile: calibrate again")
            for name in (MONITORING_NAME, SCORES_NAME):  # of other thresholds, should this be interrupted
                (folder / name).unlink(missing_ok=True)
            close(folder)
            path = save_thresholds(thresholds, folder)
            save_scores(scores, thresholds, folder, digests)
            save_reference(made_reference(facts, thresholds, checkpoint.weights_digest), folder)
        print(describe(thresholds, checkpoint.model.looks_at_class))
        if has_feedback(folder):
            print("note: banks keep what feedback added to them; its scores no longer count (docs/feedback.md)")
        print(f"thresholds {path}")


def _again(checkpoint: LoadedCheckpoint, arguments: argparse.Namespace, ranks: Ranks) -> LoadedCheckpoint:
    """The same checkpoint, not what ``arguments`` would name by now: a run that trains meanwhile writes others.

    Raises:
        ValueError: it can't be loaded, or has other weights by now.
    """
    named = argparse.Namespace(**{**vars(arguments), "checkpoint": checkpoint.folder})
    loaded = chosen_checkpoint(named, ranks)
    if loaded.weights_digest != checkpoint.weights_digest:
        raise ValueError(f"{checkpoint.folder}: its weights changed during calibration; calibrate again")
    return loaded
