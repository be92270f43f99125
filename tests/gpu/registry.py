"""All checks by name. Those of a group share a process as long as none of them fails."""

from __future__ import annotations

from gpu.check import CheckFunction
from gpu.resuming import resumed_at
from gpu.same_numbers import same_numbers
from gpu.speed import compiled_at, fast_at, longest_at
from gpu.steps import steps_in
from gpu.using import calibrated, compared, evaluated, exported, predicted
from gpu.waiting import waits
from parity.cases import Layout

from benchmarks.contest import EVALUATION, TASKS, TRAINING
from unimmad.config import Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
GROUPS: tuple[dict[str, CheckFunction], ...] = (
    {
        "30 steps, fp32": steps_in("fp32"),
        "30 steps, bf16": steps_in("bf16"),
        "no waiting in a step": waits,
    },
    {f"save and resume, ZeRO {stage}": resumed_at(stage) for stage in (0, 1, 2)},
    {
        "parity, one rank": same_numbers([Layout(1, 1, stage) for stage in (0, 1, 2)]),
        "parity, two ranks": same_numbers([Layout(2, 1, stage) for stage in (0, 1, 2)]),
        "parity, two ranks that share the experts": same_numbers([Layout(2, 2, 1)]),
    },
    {
        "evaluate": evaluated,
        "calibrate": calibrated,
        "predict": predicted,
        "export to ONNX": exported,
        "ONNX beside the checkpoint": compared,
    },
    *(
        {
            **{f"speed, {task}, {precision}": fast_at(task, precision) for task in TASKS},
            f"longest kernels, {precision}": longest_at(precision),
        }
        for precision in PRECISIONS
    ),
    {
        f"speed compiled, {task}, {precision}": compiled_at(task, precision)
        for precision in reversed(PRECISIONS)
        for task in (EVALUATION, TRAINING)
    },
)
"""In the order in which they run: compiling comes last, since it takes what time there is left."""
CHECKS: dict[str, CheckFunction] = {name: check for group in GROUPS for name, check in group.items()}
