"""(f) The benchmark beside the reference, with its variants, and the longest kernels."""

from __future__ import annotations

from collections.abc import Callable

from gpu.check import Found, Setting, SkippedError

from benchmarks.against import measure_task
from benchmarks.contest import EVALUATION, TRAINING, Comparison, Contestant, TaskResult
from benchmarks.longest import Profiled, longest_table, measure_longest
from unimmad.config import Precision

MODALITIES = 2
SIZES = {"cuda": (16, 10, 10), "cpu": (2, 2, 1)}
"""Batch of evaluation, of a training step, timed runs of each."""


def fast_at(task: str, precision: Precision) -> Callable[[Setting], Found]:
    """The check of a task: reference, ours, ours with channels_last."""

    def check(setting: Setting) -> Found:
        return _measured(setting, task, precision, ("channels_last",))

    return check


def compiled_at(task: str, precision: Precision) -> Callable[[Setting], Found]:
    """The same with torch.compile, whose first runs take minutes."""

    def check(setting: Setting) -> Found:
        if not setting.on_gpu:
            raise SkippedError("on a CPU compiling takes minutes: benchmark.py --variants compile")
        return _measured(setting, task, precision, ("compile",))

    return check


def longest_at(precision: Precision) -> Callable[[Setting], Found]:
    """The check that names the kernels of evaluation and training step."""

    def check(setting: Setting) -> Found:
        batch_size, train_batch, _ = SIZES[setting.device]
        tables = []
        for task, batch in ((EVALUATION, batch_size), (TRAINING, train_batch)):
            case = Profiled(setting.recipe, setting.device, precision, MODALITIES, task, batch)
            tables.append(longest_table(case, measure_longest(case)))
        return Found({"tables": len(tables)}, tables=tables)

    return check


def _measured(setting: Setting, task: str, precision: Precision, variants: tuple[str, ...]) -> Found:
    batch_size, train_batch, repeats = SIZES[setting.device]
    case = Comparison(setting.recipe, setting.device, precision, MODALITIES, batch_size, train_batch, repeats, variants)
    result = measure_task(case, task)
    reference, *_ = result.runs
    rows = [_row(one, result, reference, precision) for one in result.runs]
    rates = {f"{name} matrix product, TFLOP/s": round(rate / 1e12, 2) for name, rate in result.rates.items()}
    apart = f"{result.difference:.1e} (values up to {result.largest:.2g})"
    return Found({"largest difference to the reference": apart, **rates}, speeds=rows)


def _row(one: Contestant, result: TaskResult, reference: Contestant, precision: Precision) -> dict[str, str]:
    run, base = result.runs[one], result.runs[reference]
    each, base_each = run.seconds / one.batch, base.seconds / reference.batch
    return {
        "task": one.task,
        "form": one.form,
        "precision": "fp32" if one == reference else precision,
        "batch": str(one.batch),
        "ms a sample": f"{each * 1e3:.4g}",
        "images/s": f"{MODALITIES / each:.4g}",
        "samples/s": f"{1 / each:.4g}",
        "times as fast": "" if one == reference else f"{base_each / each:.2f}",
        "MFU": f"{run.share:.0%}",
    }
