"""(b) A run that is saved and resumed has the loss curve of one that went on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

from gpu.check import CheckError, Found, Setting
from gpu.runs import arguments, curve, make_shards, train_here

from unimmad.checkpoint.folder import find_checkpoint

SAVED_AT, STEPS = 3, 6
BOUND = 1e-5
"""Relative. Where a GPU has no kernel that gives the same bits twice, rounding differs; a lost moment shows as more."""


def resumed_at(zero_stage: int) -> Callable[[Setting], Found]:
    """The check of one ZeRO stage, with the kernels that give the same bits in every run."""

    def check(setting: Setting) -> Found:
        make_shards(setting)
        given = arguments(
            setting,
            f"resumed-zero{zero_stage}",
            STEPS,
            f"training.checkpoint_every={SAVED_AT}",
            "training.log_every=1",
            zero_stage=zero_stage,
            deterministic=True,
        )
        train_here(given)
        whole = curve(given.output_dir, "loss/total")
        saved = find_checkpoint(given.output_dir).with_name(f"step_{SAVED_AT:08d}")
        train_here(replace(given, resume=str(saved)))
        resumed = curve(given.output_dir, "loss/total")
        shutil.rmtree(given.output_dir)
        if whole.keys() != resumed.keys():
            raise CheckError(f"steps {sorted(whole)} before and {sorted(resumed)} after resuming")
        largest = max(abs(resumed[step] - whole[step]) / abs(whole[step]) for step in range(SAVED_AT + 1, STEPS + 1))
        if not largest <= BOUND:
            raise CheckError(f"the resumed losses differ by up to {largest:.1e}: {resumed}, not {whole}")
        return Found({"steps compared": STEPS - SAVED_AT, "largest relative difference": f"{largest:.1e}"})

    return check
