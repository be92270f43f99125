"""The cost of scoring: parameters, operations, images a second, latency and peak memory.

``--against reference`` compares with the authors' way of computing instead: evaluation, training step, C-MoE alone.
``--growth`` shows how C-MoE's time grows with tokens, leaders and banks; ``--composing`` whether training composes
kernels where that is faster; ``--profile`` names the longest kernels.

Each case (recipe, device, precision) runs in a process of its own, with random weights: the cost does not depend on
them. What is timed is what prediction does with images on the device: network, map, blur and image score.

Letters: B samples, M modalities of each, H x W pixels.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product

import torch

from benchmarks.against import Comparison, compare
from benchmarks.composing import composing_table
from benchmarks.growth import growth_tables
from benchmarks.longest import longest_tables
from benchmarks.recipes import RECIPE_HELP, measured_recipe
from benchmarks.workbench import VARIANTS
from unimmad.config import Precision
from unimmad.evaluation.scoring import named_device, score_images, scoring_form
from unimmad.model.unimmad import UniMMAD
from unimmad.profiling.flops import counted
from unimmad.profiling.machine import peak_bytes
from unimmad.profiling.timing import Work
from unimmad.report.table import Table

HELP = "cost of the model: parameters, FLOPs, images/s, latency, peak memory"
PRECISIONS = ("fp32", "bf16")
WARM_UPS = 2


@dataclass(frozen=True)
class Case:
    """What is measured."""

    recipe: str
    device: str
    precision: Precision
    modalities: int
    batch_size: int
    repeats: int


@dataclass(frozen=True)
class Cost:
    """What was found."""

    parameters: int
    """Of both backbones, too."""
    trained_parameters: int
    flops: int
    """Of one sample, 2 for each multiply-add; convolutions and matrix products."""
    images_per_second: float
    """Samples, at the case's batch size."""
    latency_median: float
    """Seconds, at batch size 1."""
    latency_p95: float
    peak_bytes: int
    """GPU: allocated by PyTorch. CPU: the process's largest resident size."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument(
        "--against", choices=["reference"], help="compare with the authors' way of computing, on the same weights"
    )
    parser.add_argument(
        "--variants", nargs="+", choices=list(VARIANTS), default=[], help="with --against: measure ours with these, too"
    )
    parser.add_argument("--growth", action="store_true", help="C-MoE's time over tokens, leaders and banks")
    parser.add_argument("--composing", action="store_true", help="both ways through a branch, beside training's choice")
    parser.add_argument(
        "--profile", action="store_true", help="the ten longest kernels of evaluation and of a training step"
    )
    parser.add_argument(
        "--recipe",
        nargs="+",
        help=f"{RECIPE_HELP} (default: demo; with --against, --growth, --composing or --profile: paper)",
    )
    parser.add_argument("--device", nargs="+", default=[default_device], help="default: a GPU where there is one")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["fp32"], help="default: fp32")
    parser.add_argument(
        "--modalities", type=int, help="of each sample (default: 1; with --against, --composing or --profile: 2)"
    )
    parser.add_argument(
        "--batch-size", type=int, help="in scoring (default: 8; with --against or --profile on a GPU: 16)"
    )
    parser.add_argument(
        "--train-batch",
        type=int,
        help="samples of a training step, with --against or --profile (default: 2 on a CPU, 10 on a GPU)",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        help="timed runs of each (default: 20; with --against, --growth or --composing on a CPU: 5)",
    )


def run(options: argparse.Namespace) -> str:
    """The tables.

    Raises:
        ValueError: no such recipe or device, or a number that cannot be.
    """
    for name in ("modalities", "batch_size", "train_batch", "repeats"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise ValueError(f"--{name.replace('_', '-')} {number} must be 1 or more")
    if options.train_batch is not None and not (options.against or options.profile):
        raise ValueError("--train-batch is for --against reference and --profile")
    if options.variants and not options.against:
        raise ValueError("--variants is for --against reference")
    if not (options.against or options.growth or options.composing or options.profile):
        return costs(options)
    parts = []
    for recipe, device, precision in product(options.recipe or ["paper"], options.device, options.precision):
        on_gpu = named_device(device).type == "cuda"
        repeats = options.repeats or (20 if on_gpu else 5)
        modalities, batch_size = options.modalities or 2, options.batch_size or (16 if on_gpu else 8)
        train_batch = options.train_batch or (10 if on_gpu else 2)
        if options.against:
            sizes = modalities, batch_size, train_batch, repeats
            parts.append(compare(Comparison(recipe, device, precision, *sizes, tuple(options.variants))))
        if options.growth:
            parts.append(growth_tables(recipe, device, precision, repeats))
        if options.composing:
            parts.append(composing_table(recipe, device, precision, modalities, repeats))
        if options.profile:
            parts.append(longest_tables(recipe, device, precision, modalities, batch_size, train_batch))
    return "\n\n".join(parts)


def costs(options: argparse.Namespace) -> str:
    """The table of scoring's costs."""
    cases = [
        Case(recipe, device, precision, options.modalities or 1, options.batch_size or 8, options.repeats or 20)
        for recipe, device, precision in product(options.recipe or ["demo"], options.device, options.precision)
    ]
    # A process for each case, or the peak memory of one would be that of the largest before it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        return table([(case, pool.submit(measure, case).result()) for case in cases])


def measure(case: Case) -> Cost:
    """Build the recipe's model and time it.

    Raises:
        ValueError: no such recipe or device, or more modalities than the model has slots.
    """
    recipe = measured_recipe(case.recipe)
    if case.modalities > recipe.model.modality_slots:
        raise ValueError(
            f"--modalities {case.modalities}: recipe {recipe.name} has {recipe.model.modality_slots} slots"
        )
    device = named_device(case.device)
    model = UniMMAD(recipe.model).to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    settings, size = recipe.evaluation, recipe.model.image_size
    scoring_form(model, settings, device)

    def scorer(batch_size: int) -> Work:
        images_TCHW = torch.randn(batch_size * case.modalities, 3, size, size, device=device)
        slot_of_token_T = torch.arange(case.modalities, device=device).repeat(batch_size)
        tokens_per_sample = (case.modalities,) * batch_size

        def score() -> torch.Tensor:
            scored = score_images(model, images_TCHW, tokens_per_sample, slot_of_token_T, settings, case.precision)
            return scored.scores_B.cpu()

        return score

    score_one = scorer(1)
    score_one()  # what is made once does not count
    _, flops = counted(score_one)
    alone = _seconds(scorer(1), case.repeats)
    together = _seconds(scorer(case.batch_size), case.repeats)
    return Cost(
        parameters=parameters,
        trained_parameters=trained,
        flops=flops,
        images_per_second=case.batch_size / statistics.median(together),
        latency_median=statistics.median(alone),
        latency_p95=_percentile(alone, 0.95),
        peak_bytes=peak_bytes(device),
    )


def table(results: list[tuple[Case, Cost]]) -> str:
    """Markdown, one row a case."""
    heads = ["recipe", "device", "precision", "parameters", "trained", "GFLOP", "images/s", "median", "p95", "peak"]
    rows = [
        [
            case.recipe,
            case.device,
            case.precision,
            f"{cost.parameters / 1e6:.1f} M",
            f"{cost.trained_parameters / 1e6:.1f} M",
            f"{cost.flops / 1e9:.2f}",
            f"{cost.images_per_second:.1f}",
            f"{cost.latency_median * 1e3:.1f} ms",
            f"{cost.latency_p95 * 1e3:.1f} ms",
            f"{cost.peak_bytes / 2**20:.0f} MiB",
        ]
        for case, cost in results
    ]
    case = results[0][0]
    said = (
        f"{case.modalities} modalities a sample; GFLOP of one sample; samples as images/s, at batch size "
        f"{case.batch_size}; latency at batch size 1 over {case.repeats} runs; {torch.get_num_threads()} CPU threads; "
        "peak: resident on a CPU, allocated on a GPU"
    )
    return Table(heads, rows).to_markdown() + said


def _seconds(score: Work, repeats: int) -> list[float]:
    """Of each run; a run ends when its scores are on the host."""
    for _ in range(WARM_UPS):
        score()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        score()
        seconds.append(time.perf_counter() - started)
    return seconds


def _percentile(values: list[float], share: float) -> float:
    """The smallest value that this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
