"""Where the time of evaluation and of a training step goes: the ten longest kernels, on a processor operators.

Times are those that the profiler gives each kernel itself, without what it calls.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.contest import EVALUATION, TRAINING
from benchmarks.recipes import measured_recipe
from benchmarks.workbench import Workbench
from unimmad.config import Precision
from unimmad.evaluation.scoring import named_device
from unimmad.profiling.machine import machine_name
from unimmad.profiling.timing import Work, synchronise
from unimmad.report.table import Table

LONGEST = 10
RUNS = 3
"""That the profiler sees."""
WARM_UPS = 2
NAME_WIDTH = 90
"""Characters of a kernel's name that are shown; templates' names run on for hundreds."""


@dataclass(frozen=True)
class Profiled:
    """What is run under the profiler, in ours."""

    recipe: str
    device: str
    precision: Precision
    modalities: int
    task: str
    batch: int


@dataclass(frozen=True)
class Kernel:
    """All calls of one name, in one run."""

    name: str
    calls: float
    seconds: float
    share: float
    """Of all kernels' time."""


def longest_tables(
    recipe: str, device: str, precision: Precision, modalities: int, batch_size: int, train_batch: int
) -> str:
    """A table for evaluation and one for a training step.

    Raises:
        ValueError: no such recipe or device, or more modalities than the model has slots.
    """
    named_device(device)
    cases = [
        Profiled(recipe, device, precision, modalities, task, batch)
        for task, batch in ((EVALUATION, batch_size), (TRAINING, train_batch))
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        return "\n\n".join(longest_table(case, pool.submit(measure_longest, case).result()) for case in cases)


def measure_longest(case: Profiled) -> list[Kernel]:
    """Run the task of ``case`` under the profiler."""
    device = named_device(case.device)
    bench = Workbench(measured_recipe(case.recipe), device, case.precision, case.modalities, one_form=True)
    if case.task == EVALUATION:
        bench.settle_batchnorm()
    make = bench.scoring if case.task == EVALUATION else bench.training_step
    return longest_kernels(make("ours", case.batch), device)


def longest_kernels(work: Work, device: torch.device) -> list[Kernel]:
    """The longest first."""
    on_gpu = device.type == "cuda"
    for _ in range(WARM_UPS):
        work()
    synchronise(device)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(RUNS):
            work()
        synchronise(device)
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events: list[Any] = [
        event for event in profiler.key_averages() if event.device_type == wanted and not event.is_user_annotation
    ]
    seconds = [(event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6 for event in events]
    kernels = [
        Kernel(event.key, event.count / RUNS, own / RUNS, own / sum(seconds))
        for event, own in zip(events, seconds, strict=True)
    ]
    return sorted(kernels, key=lambda kernel: -kernel.seconds)[:LONGEST]


def longest_table(case: Profiled, kernels: list[Kernel]) -> str:
    """Markdown."""
    heads = ["kernel" if named_device(case.device).type == "cuda" else "operator", "share", "ms a run", "calls a run"]
    rows = [
        [
            kernel.name[:NAME_WIDTH],
            f"{kernel.share:.1%}",
            f"{kernel.seconds * 1e3:.2f}",
            f"{kernel.calls:g}",
        ]
        for kernel in kernels
    ]
    told = (
        f"{case.task}, ours, {case.precision}, {case.batch} samples of {case.modalities} modalities, recipe "
        f"{case.recipe}, {case.device} ({machine_name(named_device(case.device))}): the longest of {RUNS} runs"
    )
    return f"{told}\n\n{Table(heads, rows).to_markdown()}"
