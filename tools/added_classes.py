"""How well added classes are scored, by the number of images that they were made from: the tables of docs/continual.md.

    python tools/added_classes.py --checkpoint runs/without --together runs/with --data data/new --images 1 4 16 all

Of each number three draws; each time every class of DATA is added to ``--checkpoint``, which does not know them, and
their test images are scored; nothing is written. ``--together`` was trained or fitted on them, too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from unimmad.checkpoint.added_classes import AddedClass, with_classes
from unimmad.checkpoint.folder import find_checkpoint
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.normal_maps import load_normal_maps
from unimmad.checkpoint.thresholds import load_thresholds
from unimmad.data.layouts.scan import Notices
from unimmad.data.reading.shard_set import ShardSet
from unimmad.evaluation.geometry import scoring_geometry
from unimmad.evaluation.held_thresholds import HeldThresholds
from unimmad.evaluation.run import evaluate_classes
from unimmad.evaluation.scoring import scoring_form
from unimmad.inference.adding import ClassAdder, chosen_images
from unimmad.inference.catalogue_sources import checkpoint_catalogue
from unimmad.inference.new_class import new_classes
from unimmad.report.report import ClassResult

KEYS = ("I-AUROC", "P-AUROC", "AUPRO")
CPU = torch.device("cpu")
DRAWS = 3


def scores(checkpoint: Path, data: Path, added: Sequence[AddedClass]) -> list[ClassResult]:
    """The test images of all of ``data``'s classes, by a checkpoint with these classes added."""
    loaded = load_checkpoint(checkpoint, verify=False)
    if added:
        loaded = with_classes(loaded, added)
    shards = ShardSet.open([data], None, loaded.trained_datasets)
    settings = loaded.recipe.evaluation
    held = HeldThresholds(load_thresholds(checkpoint), shards.datasets, False, "fp32", loaded.added)
    found = evaluate_classes(
        scoring_form(loaded.model, settings, CPU),
        shards,
        "test",
        settings,
        device=CPU,
        workers=0,
        mask_resize=settings.mask_resize,
        geometry=scoring_geometry(loaded.recipe),
        progress=False,
        thresholds=held,
    )
    return [scored.result for scored in found]


def adding(checkpoint: Path, data: Path, wanted: int | None, seed: int) -> list[AddedClass]:
    """All classes of ``data``, made from so many images each (None: all)."""
    loaded = load_checkpoint(checkpoint, verify=False)
    thresholds = load_thresholds(checkpoint)
    catalogue = checkpoint_catalogue(loaded, None, thresholds)
    adder = ClassAdder(loaded, catalogue, thresholds, load_normal_maps(checkpoint), device=CPU)
    found = new_classes([data], None, catalogue, Notices())
    return [adder.add(chosen_images(one, wanted or len(one.samples), seed)) for one in found]


def means(results: Sequence[ClassResult]) -> dict[str, float]:
    """Over the classes: the metrics, and at the borrowed thresholds the shares of images called anomalous."""
    of_keys = {key: [result.metrics[key] for result in results] for key in KEYS}
    at = [result.at_threshold for result in results]
    of_keys["FPR"] = [None if one is None else one.image_false_alarm_rate for one in at]
    of_keys["TPR"] = [None if one is None else one.image_recall for one in at]
    known = {key: [value for value in values if value is not None] for key, values in of_keys.items()}
    return {key: statistics.mean(values) for key, values in known.items() if values}


def rows(options: argparse.Namespace) -> Iterator[str]:
    """The table, line by line."""
    checkpoint = find_checkpoint(options.checkpoint)
    yield "| images of a class | " + " | ".join((*KEYS, "FPR", "TPR")) + " | CPU seconds a class |"
    yield "| --- |" + " ---: |" * (len(KEYS) + 3)
    for number in options.images:
        wanted, draws = (None, 1) if number == "all" else (int(number), DRAWS)
        found, seconds = [], []
        for seed in range(draws):
            started = time.process_time()
            added = adding(checkpoint, options.data, wanted, seed)
            seconds.append((time.process_time() - started) / len(added))
            found.append(means(scores(checkpoint, options.data, added)))
        yield f"| {number} | {_cells(found)} | {statistics.mean(seconds):.1f} |"
    if options.together is not None:
        together = means(scores(find_checkpoint(options.together), options.data, []))
        yield f"| fitted together | {_cells([together])} | |"


def _cells(found: Sequence[dict[str, float]]) -> str:
    """Mean over draws, and how far the lowest and the highest lie apart."""
    cells = []
    for key in (*KEYS, "FPR", "TPR"):
        values = [one[key] for one in found if key in one]
        apart = f" ({max(values) - min(values):.3f})" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.3f}{apart}" if values else "")
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="that does not know the classes")
    parser.add_argument("--together", type=Path, help="that does")
    parser.add_argument("--data", type=Path, required=True, help="shards of the classes")
    parser.add_argument("--images", nargs="+", default=["1", "4", "16", "all"], help="of a class")
    options = parser.parse_args()
    for row in rows(options):
        print(row, flush=True)


if __name__ == "__main__":
    main()
