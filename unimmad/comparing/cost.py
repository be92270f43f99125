"""What scoring with a checkpoint costs, measured in a process of its own, whose peak memory is then the method's.

``python -m unimmad.comparing.cost RUN TARGET --data DIR ...`` writes cost.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from unimmad.checkpoint.folder import find_checkpoint
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.comparing.results import CostEntry
from unimmad.config import Precision
from unimmad.data.location import DataFolder, parse_data_folder
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.reading.stream import evaluation_rounds
from unimmad.data.sample import Batch
from unimmad.data.views import Geometry
from unimmad.evaluation.geometry import scoring_geometry
from unimmad.evaluation.scoring import BatchScores, chosen_precision, named_device, scoring_form
from unimmad.evaluation.tiling import score_samples
from unimmad.methods.registry import METHODS, Registry
from unimmad.model.method import Method
from unimmad.profiling.flops import counted
from unimmad.profiling.machine import machine_name, peak_bytes
from unimmad.profiling.timing import synchronise
from unimmad.serialization.atomic_write import write_text_aside

BATCHES = 8
"""At most, of as many classes in turn."""
REPEATS = 3
GIB = 2**30


def measure(
    run: Path,
    data: Sequence[DataFolder],
    device: torch.device,
    precision: Precision | None,
    methods: Registry = METHODS,
) -> CostEntry:
    """Load a run's newest checkpoint and score some test batches of ``data``, after a round that counts operations.

    Raises:
        ValueError: the checkpoint or a sample can't be read.
    """
    checkpoint = load_checkpoint(find_checkpoint(run), verify=False, methods=methods)
    settings, model = checkpoint.recipe.evaluation, checkpoint.model
    sizes = [tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point()]
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    model = scoring_form(model, settings.model_copy(update={"compile": False}), device)
    chosen = chosen_precision(precision, device)
    geometry = scoring_geometry(checkpoint.recipe)
    batches = _batches(ShardSet.open(data, known=checkpoint.trained_datasets), model, settings.batch_size, geometry)

    def score(batch: Batch) -> BatchScores:
        return score_samples(model, batch, settings, device, chosen, geometry)[1]

    operations = sum(counted(lambda batch=batch: score(batch).scores_B)[1] for batch in batches)  # type: ignore[misc]
    samples = sum(len(batch.samples) for batch in batches)
    rates = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        scores: list[Tensor] = [score(batch).scores_B for batch in batches]
        synchronise(device)
        rates.append(sum(map(len, scores)) / (time.perf_counter() - started))
    return CostEntry(
        parameters=sum(sizes),
        trained=trained,
        gflop=operations / samples / 1e9,
        images_per_second=statistics.median(rates),
        peak_gib=peak_bytes(device) / GIB,
        device=f"{machine_name(device)}, {chosen}",
    )


def _batches(shards: ShardSet, model: Method, batch_size: int, geometry: Geometry) -> list[Batch]:
    """The first of each class."""
    classes = list(shards.classes("test"))[:BATCHES]
    return [
        batch
        for class_name in classes
        for batch in islice(
            evaluation_rounds(
                shards,
                "test",
                image_size=model.image_size,
                batch_size=batch_size,
                workers=0,
                classes=[class_name],
                geometry=geometry,
            ),
            1,
        )
        if batch is not None
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 where something given is wrong."""
    parser = argparse.ArgumentParser(prog="unimmad.comparing.cost", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder of the method")
    parser.add_argument("target", type=Path, help="the JSON to write")
    parser.add_argument("--data", nargs="+", required=True, help="shard folders or URLs")
    parser.add_argument("--device", help="such as cuda:1; default: the GPU where there is one")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: as in evaluation")
    given = parser.parse_args(argv)
    try:
        data = [parse_data_folder(text) for text in given.data]
        cost = measure(given.run, data, named_device(given.device), given.precision)
        write_text_aside(given.target, cost.model_dump_json(indent=2) + "\n")
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
