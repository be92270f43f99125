"""(a) Training steps in a precision: what convolutions and products really compute in, memory, speed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from gpu.check import CheckError, Found, Setting
from gpu.runs import arguments, curve, make_shards, train_here
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from unimmad.training import loop

STEPS = 30
WATCHED_STEP = 2
"""The first one's operations are counted."""
aten = torch.ops.aten
COMPUTING = {
    "convolutions": {aten.convolution, aten.convolution_backward},
    "products": {aten.mm, aten.addmm, aten.bmm, aten.baddbmm},
}


class DtypeWatch(TorchDispatchMode):
    """Counts the dtypes of what convolutions and matrix products multiply, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Counter[str]] = {kind: Counter() for kind in COMPUTING}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for kind, operations in COMPUTING.items():
            if func.overloadpacket in operations:
                dtypes = {str(arg.dtype).removeprefix("torch.") for arg in args[:2] if isinstance(arg, Tensor)}
                self.seen[kind]["+".join(sorted(dtypes))] += 1
        return func(*args, **(kwargs or {}))


def steps_in(precision: str) -> Callable[[Setting], Found]:
    """The check of one precision."""

    def check(setting: Setting) -> Found:
        make_shards(setting)
        given = arguments(
            setting, f"steps-{precision}", STEPS, f"training.precision={precision}", "training.log_every=10"
        )
        watch, plain, calls = DtypeWatch(), loop.micro_step, 0

        def watched(*argv: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls != WATCHED_STEP:
                return plain(*argv)
            with watch:
                return plain(*argv)

        if setting.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        with patch.object(loop, "micro_step", watched):
            train_here(given)
        run = given.output_dir
        losses = curve(run, "loss/total")
        if not all(map(math.isfinite, losses.values())):
            raise CheckError(f"a loss is not finite: {losses}")
        facts = {kind: dict(seen) for kind, seen in watch.seen.items()}
        _require(precision, watch)
        last = {name: curve(run, name)[STEPS] for name in ("step_seconds", "samples_per_second", "mfu")}
        return Found(
            {
                **facts,
                "loss": [round(loss, 4) for loss in losses.values()],
                "gradient norm": [round(norm, 4) for norm in curve(run, "gradient_norm").values()],
                "ms a step": round(last["step_seconds"] * 1e3, 1),
                "samples/s": round(last["samples_per_second"], 1),
                "MFU": f"{last['mfu']:.0%}",
                "peak memory, GiB": round(curve(run, "peak_memory_gib")[STEPS], 2),
            }
        )

    return check


def _require(precision: str, watch: DtypeWatch) -> None:
    """C-MoE's scores and the loss are fp32 in bf16, too, but most of both kinds is not."""
    for kind, seen in watch.seen.items():
        if precision == "fp32" and set(seen) != {"float32"}:
            raise CheckError(f"{kind} of training in fp32 computed in {dict(seen)}")
        if precision == "bf16" and seen["bfloat16"] <= sum(seen.values()) / 2:
            raise CheckError(f"{kind} of training in bf16 computed in {dict(seen)}: most should be bfloat16")
