"""The model against the reference, the authors' way of computing, on the same weights in the same run.

A task's contestants take turns in one process, and the medians of their times are compared; a large matrix product
takes its turns with them, as the machine's rate. The peaks of each contestant are those of a process of its own.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.contest import (
    DECODING,
    DECODING_BACK,
    EVALUATION,
    SCORING,
    TASKS,
    TRAINING,
    Comparison,
    Contestant,
    Peaks,
    Run,
    TaskResult,
    contestants,
)
from benchmarks.contest_table import report
from benchmarks.recipes import measured_recipe
from benchmarks.tensor_memory import StorageWatch
from benchmarks.workbench import Workbench
from unimmad.evaluation.scoring import named_device
from unimmad.model.backends.tf32 import NEITHER, tf32, without_tf32
from unimmad.profiling.flops import counted
from unimmad.profiling.machine import matrix_product, peak_bytes
from unimmad.profiling.timing import Work, interleaved_seconds

GPU_WARM_UPS = 3
PRODUCTS = 8
"""Of one turn: short turns would meet other moments of a busy machine than the works beside them."""


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
            contestant: pool.submit(measure_peaks, case, contestant).result()
            for contestant in tqdm(everyone, desc="peak memory", unit="process", leave=False, disable=None)
        }
    return report(case, results, peaks)


def measure_task(case: Comparison, task: str) -> TaskResult:
    """Time a task's contestants in turns, in this process."""
    device = named_device(case.device)
    racing = contestants(case, task)
    bench = _workbench(case, task)
    if task == EVALUATION:
        bench.settle_batchnorm()
    works = {contestant: work_of(bench, contestant) for contestant in racing}
    # Before anything is counted: what ours makes once and keeps does not count.
    outcomes = [work() for work in works.values()]
    operations = {contestant: counted(work)[1] for contestant, work in works.items()}
    fp32 = "fp32" if task in SCORING or tf32() == NEITHER or device.type != "cuda" else "tf32"
    of_ours = "bf16" if case.precision == "bf16" else fp32
    products = {name: matrix_product(_dtype(name), device, products=PRODUCTS) for name in sorted({fp32, of_ours})}
    if task in SCORING:
        products = {name: (without_tf32()(work), flops) for name, (work, flops) in products.items()}
    seconds = interleaved_seconds(_named(works, products), _warm_ups(device), device, f"{task}: warm-up")
    seconds = interleaved_seconds(_named(works, products), case.repeats, device, task)
    rates = {name: flops / statistics.median(seconds[_product(name)]) for name, (_, flops) in products.items()}
    runs = {}
    for contestant, flops in operations.items():
        median = statistics.median(seconds[contestant.name])
        rate = rates[fp32 if contestant.form == "reference" else of_ours]
        runs[contestant] = Run(median, flops, flops / median / rate)
    reference, *ours = outcomes
    return TaskResult(runs, _largest_difference(reference, ours), float(reference.abs().max()), rates)


def measure_peaks(case: Comparison, contestant: Contestant) -> Peaks:
    """Of a process that does nothing else."""
    device = named_device(case.device)
    with StorageWatch() as tensors:
        work = work_of(_workbench(case, contestant.task, one_form=True), contestant)
        for _ in range(2):  # the second training step meets the optimizer's moments
            work()
    return Peaks(tensors.peak, peak_bytes(device))


def work_of(bench: Workbench, contestant: Contestant) -> Work:
    """What a contestant does."""
    makers = {
        EVALUATION: bench.scoring,
        TRAINING: bench.training_step,
        DECODING: bench.decoding,
        DECODING_BACK: bench.decoding_with_gradients,
    }
    return makers[contestant.task](contestant.form, contestant.batch)


def _check(case: Comparison) -> None:
    """Bad options are told here, before any process starts."""
    named_device(case.device)
    slots = measured_recipe(case.recipe).model.modality_slots
    if case.modalities > slots:
        raise ValueError(f"--modalities {case.modalities}: recipe {case.recipe} has {slots} slots")


def _workbench(case: Comparison, task: str, one_form: bool = False) -> Workbench:
    return Workbench(
        measured_recipe(case.recipe),
        named_device(case.device),
        case.precision,
        case.modalities,
        decoders_only=task in (DECODING, DECODING_BACK),
        one_form=one_form,
    )


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
