"""The model against the reference, the authors' way of computing, on the same weights in the same run.

A task's contestants take turns in one process, and the medians of their times are compared; a large matrix product
takes its turns with them, as the machine's rate. The peak memory of each contestant is that of a process of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from unimmad.benchmarks.clock import Work, counted, interleaved_seconds, matrix_product, peak_bytes
from unimmad.benchmarks.markdown import markdown_table
from unimmad.benchmarks.workbench import FORMS, Form, Workbench
from unimmad.config import load_recipe
from unimmad.evaluation.scoring import Precision, named_device

EVALUATION = "evaluation"
TRAINING = "training step"
DECODING = "C-MoE, inference"
DECODING_BACK = "C-MoE, forward and backward"
TASKS = (EVALUATION, TRAINING, DECODING, DECODING_BACK)
GPU_WARM_UPS = 3


@dataclass(frozen=True)
class Comparison:
    """What is compared."""

    recipe: str
    device: str
    precision: Precision
    """Of ours; the reference computes in fp32."""
    modalities: int
    batch_size: int
    """Of ours in the second row of evaluation."""
    train_batch: int
    repeats: int


@dataclass(frozen=True)
class Contestant:
    """A form at a task."""

    task: str
    form: Form
    batch: int

    @property
    def name(self) -> str:
        return f"{self.form}, batch {self.batch}"


@dataclass(frozen=True)
class Run:
    """What a contestant took."""

    seconds: float
    """Median of a run."""
    flops: int
    """Of a run."""
    share: float
    """Of the rate of a large matrix product in its precision."""


@dataclass(frozen=True)
class TaskResult:
    """A task's contestants beside each other."""

    runs: dict[Contestant, Run]
    difference: float
    """Largest, between what the two forms gave for the same input."""
    largest: float
    """Absolute value in what the reference gave."""
    rates: dict[str, float]
    """Operations a second of the matrix product, by precision."""


def compare(case: Comparison) -> str:
    """Measure all tasks and give the tables.

    Raises:
        ValueError: no such recipe or device, or more modalities than the model has slots.
    """
    _check(case)
    context = multiprocessing.get_context("spawn")
    # This process stays small: on Linux a new one begins with its parent's largest size as its own.
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        results = {task: pool.submit(measure_task, case, task).result() for task in TASKS}
        everyone = [contestant for result in results.values() for contestant in result.runs]
        peaks = {
            contestant: pool.submit(measure_peak, case, contestant).result()
            for contestant in tqdm(everyone, desc="peak memory", unit="process", leave=False)
        }
    return report(case, results, peaks)


def contestants(case: Comparison, task: str) -> list[Contestant]:
    """Those of a task; the first is the reference."""
    if task == EVALUATION:
        batches = sorted({1, case.batch_size})
        return [Contestant(task, "reference", 1), *(Contestant(task, "ours", batch) for batch in batches)]
    batch = 1 if task == DECODING else case.train_batch
    return [Contestant(task, form, batch) for form in FORMS]


def measure_task(case: Comparison, task: str) -> TaskResult:
    """Time a task's contestants in turns, in this process."""
    device = named_device(case.device)
    racing = contestants(case, task)
    bench = _workbench(case, max(contestant.batch for contestant in racing))
    if task in (EVALUATION, DECODING):
        bench.settle_batchnorm()
    works = {contestant: work_of(bench, contestant) for contestant in racing}
    first = {contestant: counted(work) for contestant, work in works.items()}
    precisions: set[str] = {"fp32", case.precision}
    products = {name: matrix_product(_dtype(name), device) for name in sorted(precisions)}
    seconds = interleaved_seconds(_named(works, products), _warm_ups(device), device, f"{task}: warm-up")
    seconds = interleaved_seconds(_named(works, products), case.repeats, device, task)
    rates = {name: flops / statistics.median(seconds[_product(name)]) for name, (_, flops) in products.items()}
    runs = {}
    for contestant, (_, flops) in first.items():
        median = statistics.median(seconds[contestant.name])
        rate = rates["fp32" if contestant.form == "reference" else case.precision]
        runs[contestant] = Run(median, flops, flops / median / rate)
    reference, *ours = [outcome for outcome, _ in first.values()]
    return TaskResult(runs, _largest_difference(reference, ours), float(reference.abs().max()), rates)


def measure_peak(case: Comparison, contestant: Contestant) -> int:
    """Largest memory of a process that does nothing else, in bytes."""
    device = named_device(case.device)
    work = work_of(_workbench(case, contestant.batch), contestant)
    for _ in range(2):  # the second training step meets the optimizer's moments
        work()
    return peak_bytes(device)


def work_of(bench: Workbench, contestant: Contestant) -> Work:
    """What a contestant does."""
    makers = {
        EVALUATION: bench.scoring,
        TRAINING: bench.training_step,
        DECODING: bench.decoding,
        DECODING_BACK: bench.decoding_with_gradients,
    }
    return makers[contestant.task](contestant.form, contestant.batch)


def report(case: Comparison, results: dict[str, TaskResult], peaks: dict[Contestant, int]) -> str:
    """Markdown: a row a contestant, then how far the numbers of the two forms are apart."""
    heads = [
        "task",
        "form",
        "batch",
        "s a sample",
        "samples/s",
        "times as fast",
        "GFLOP a sample",
        "of the rate",
        "peak",
    ]
    rows = [
        _row(contestant, run, next(iter(result.runs.items())), peaks[contestant])
        for result in results.values()
        for contestant, run in result.runs.items()
    ]
    apart = [
        f"largest difference to the reference, {task}: {result.difference:.1e} (values up to {result.largest:.2g})"
        for task, result in results.items()
    ]
    return "\n".join([*markdown_table(heads, rows, left=2), "", *apart, "", *_circumstances(case, results)])


def _row(contestant: Contestant, run: Run, base: tuple[Contestant, Run], peak: int) -> list[str]:
    each, base_each = run.seconds / contestant.batch, base[1].seconds / base[0].batch
    return [
        contestant.task,
        contestant.form,
        str(contestant.batch),
        f"{each:.4g}",
        f"{1 / each:.3g}",
        "" if contestant == base[0] else f"{base_each / each:.2f}",
        f"{run.flops / contestant.batch / 1e9:.1f}",
        f"{run.share:.0%}",
        f"{peak / 2**20:.0f} MiB",
    ]


def _circumstances(case: Comparison, results: dict[str, TaskResult]) -> list[str]:
    rates = {
        name: statistics.median(result.rates[name] for result in results.values())
        for name in next(iter(results.values())).rates
    }
    told = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items())
    device = named_device(case.device)
    machine = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    )
    lines = [
        f"recipe {case.recipe}, {case.modalities} modalities a sample, {case.device} ({machine}), ours in "
        f"{case.precision}, the reference in fp32; {torch.get_num_threads()} CPU threads, "
        f"load {os.getloadavg()[0]:.1f}",
        f"medians of {case.repeats} runs in turns; rate of a large matrix product in the same turns: {told}",
        "peak: of a process of its own; resident on a CPU, allocated by PyTorch on a GPU",
    ]
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        lines.append("fp32 on this GPU: convolutions in TF32, PyTorch's default, in both forms; the rate is TF32's too")
    return lines


def _check(case: Comparison) -> None:
    """Bad options are told here, before any process starts."""
    named_device(case.device)
    slots = load_recipe(case.recipe).model.modality_slots
    if case.modalities > slots:
        raise ValueError(f"--modalities {case.modalities}: recipe {case.recipe} has {slots} slots")


def _workbench(case: Comparison, largest_batch: int) -> Workbench:
    recipe = load_recipe(case.recipe)
    return Workbench(recipe, named_device(case.device), case.precision, case.modalities, largest_batch)


def _named(works: dict[Contestant, Work], products: dict[str, tuple[Work, int]]) -> dict[str, Work]:
    named = {contestant.name: work for contestant, work in works.items()}
    return named | {_product(name): work for name, (work, _) in products.items()}


def _product(precision: str) -> str:
    return f"matrix product, {precision}"


def _dtype(precision: str) -> torch.dtype:
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _warm_ups(device: torch.device) -> int:
    """Beyond the run whose operations are counted."""
    return GPU_WARM_UPS if device.type == "cuda" else 0


def _largest_difference(reference: Tensor, ours: Sequence[Tensor]) -> float:
    """A larger batch begins with the reference's samples."""
    return max(float((found[: len(reference)] - reference).abs().max()) for found in ours)
