"""(d) Whether the host waits for the device within a step: not in ours; what DeepSpeed's optimizer step waits for."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu.check import CheckError, Found, Setting
from gpu.runs import arguments, make_shards, the_world
from training.host_reads import host_reads

from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.sample import Batch, collate
from unimmad.methods.registry import new_model
from unimmad.parallel.deepspeed_config import read_deepspeed_config
from unimmad.parallel.engine import Engine, build_engine
from unimmad.training.micro_step import micro_step

WARM_UP_STEPS = 3


def waits(setting: Setting) -> Found:
    """At ZeRO 0, 1 and 2, world 1. On a CPU: what would be waited for, by the operations that read values."""
    make_shards(setting)
    facts: dict[str, Any] = {"watched by": "CUDA's sync debug mode" if setting.on_gpu else "operations that read"}
    for stage in (0, 1, 2):
        given = arguments(setting, "waiting", 1, zero_stage=stage)
        training = given.recipe.training
        model, _ = new_model(given.recipe, seed=0)
        engine = build_engine(model, read_deepspeed_config(given.deepspeed_config), training, the_world(), 1)
        batch = _batch(setting, training.global_batch // training.accumulation, given.recipe.model.image_size)
        weights_T = torch.ones(len(batch.slot_of_token_T))
        if setting.on_gpu:
            batch, weights_T = batch.pin_memory(), weights_T.pin_memory()
        for _ in range(WARM_UP_STEPS):
            micro_step(engine, batch, weights_T, training)
        with (_gpu_waits if setting.on_gpu else _host_reads)(engine) as in_deepspeed:
            micro_step(engine, batch, weights_T, training)
        found = Counter(in_deepspeed)
        facts[f"DeepSpeed's step, ZeRO {stage}"] = dict(found) if found else "waits for nothing"
        engine.deepspeed.destroy()
    return Found(facts)


@contextmanager
def _gpu_waits(engine: Engine) -> Iterator[list[str]]:
    """A wait within raises, but in DeepSpeed's own step, whose waits are listed."""
    found: list[str] = []
    step = engine.deepspeed.step

    def watched() -> None:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
        torch.cuda.set_sync_debug_mode("error")
        found.extend(_place(warning) for warning in caught if "synchroniz" in str(warning.message))

    engine.deepspeed.step = watched
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
        del engine.deepspeed.step


def _place(warning: warnings.WarningMessage) -> str:
    return f"{'/'.join(Path(warning.filename).parts[-3:])}:{warning.lineno}"


@contextmanager
def _host_reads(engine: Engine) -> Iterator[list[str]]:
    """The same by what needs values on the host."""
    found: list[str] = []
    step = engine.deepspeed.step
    with host_reads() as reads:

        def watched() -> None:
            ours = len(reads)
            step()
            found.extend(reads[ours:])
            del reads[ours:]

        engine.deepspeed.step = watched
        yield found
        del engine.deepspeed.step
    if reads:
        raise CheckError(f"our forward and backward read {reads}")


def _batch(setting: Setting, samples: int, image_size: int) -> Batch:
    shards = ShardSet.open([setting.shards])
    refs = [ref for of_class in zip(*shards.classes("train").values(), strict=False) for ref in of_class]
    return collate([shards.read(ref, image_size) for ref in refs[:samples]])
