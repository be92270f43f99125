"""(a) Training steps in a precision: what convolutions and products really compute in, memory, speed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from dtype_watch import CONVOLUTIONS, PRODUCTS, DtypeWatch
from gpu.check import CheckError, Found, Setting
from gpu.runs import arguments, curve, make_shards, train_here

from unimmad.training import loop

STEPS = 30
WATCHED_STEP = 2
"""The first one's operations are counted."""
COMPUTING = {"convolutions": CONVOLUTIONS, "products": PRODUCTS}


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
        seen = {kind: sum((watch.seen[name] for name in names), Counter()) for kind, names in COMPUTING.items()}
        facts = {
            kind: {str(dtype).removeprefix("torch."): count for dtype, count in counts.items()}
            for kind, counts in seen.items()
        }
        _require(precision, seen)
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


def _require(precision: str, seen: dict[str, Counter[torch.dtype]]) -> None:
    """C-MoE's scores and the loss are fp32 in bf16, too, but most of both kinds is not."""
    for kind, counts in seen.items():
        if precision == "fp32" and set(counts) != {torch.float32}:
            raise CheckError(f"{kind} of training in fp32 computed in {dict(counts)}")
        if precision == "bf16" and counts[torch.bfloat16] <= sum(counts.values()) / 2:
            raise CheckError(f"{kind} of training in bf16 computed in {dict(counts)}: most should be bfloat16")
