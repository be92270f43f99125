"""The table of ``benchmark.py model --against reference``, and what it was measured on."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping

import torch

from benchmarks.contest import Comparison, Contestant, Peaks, Run, TaskResult
from unimmad.evaluation.scoring import named_device
from unimmad.profiling.machine import machine_name
from unimmad.report.table import Table


def report(case: Comparison, results: Mapping[str, TaskResult], peaks: Mapping[Contestant, Peaks]) -> str:
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
        "tensors' peak",
        "process's",
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
    return "\n".join([Table(heads, rows, names=2).to_markdown(), *apart, "", *_circumstances(case, results)])


def _row(contestant: Contestant, run: Run, base: tuple[Contestant, Run], peaks: Peaks) -> list[str]:
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
        f"{peaks.tensors / 2**20:.0f} MiB",
        f"{peaks.process / 2**20:.0f} MiB",
    ]


def _circumstances(case: Comparison, results: Mapping[str, TaskResult]) -> list[str]:
    names = sorted({name for result in results.values() for name in result.rates})
    rates = {
        name: statistics.median(result.rates[name] for result in results.values() if name in result.rates)
        for name in names
    }
    told = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items())
    device = named_device(case.device)
    lines = [
        f"recipe {case.recipe}, {case.modalities} modalities a sample, {case.device} ({machine_name(device)}), ours in "
        f"{case.precision}, the reference in fp32; {torch.get_num_threads()} CPU threads, "
        f"load {os.getloadavg()[0]:.1f}",
        f"medians of {case.repeats} runs in turns; rate of a large matrix product in the same turns: {told}",
        "peaks: tensors alive at once, and all that a process of its own holds (resident on a CPU, allocated on a GPU)",
    ]
    if "tf32" in rates:
        lines.append(
            "fp32 of training on this GPU is TF32 in both forms, held against TF32's rate; scoring goes without"
        )
    return lines
