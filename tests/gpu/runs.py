"""Training runs that checks start in their own process, and what those runs' logs say."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from gpu.check import Setting
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unimmad.config import load_recipe
from unimmad.data.layouts.source_set import SourceSet
from unimmad.data.synthetic import synthetic_sets
from unimmad.data.writing.shards import write_shards
from unimmad.parallel.world import World, join_world
from unimmad.training.arguments import TrainArguments
from unimmad.training.run import train
from unimmad.training.run_folder import TENSORBOARD

LONG_ENOUGH = "training.epochs=100"
"""Of a few samples, for the schedule to have more steps than are taken."""


@cache
def the_world() -> World:
    """One for all checks of a process."""
    return join_world()


def make_shards(setting: Setting) -> None:
    """Five training samples a class, of which one is for calibration, and two test samples."""
    if setting.shards.exists():
        return
    drawn = synthetic_sets(train_per_class=5, normal_per_class=1, anomalous_per_class=1)
    write_shards([_last_set_aside(found) for found in drawn], setting.shards, progress=False)


def _last_set_aside(found: SourceSet) -> SourceSet:
    """The last training sample of each class for calibration."""
    last = {sample.class_name: sample.key for sample in found.samples if sample.split == "train"}
    aside = [
        replace(sample, split="calibration") if last.get(sample.class_name) == sample.key else sample
        for sample in found.samples
    ]
    return replace(found, samples=tuple(aside))


def arguments(setting: Setting, run: str, max_steps: int, *overrides: str, **changes: Any) -> TrainArguments:
    """Of a training run in the folder ``run``; ``zero_stage`` is 1 unless given, other changes are the arguments'."""
    stage = changes.pop("zero_stage", 1)
    config = setting.work / f"zero{stage}.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    settings = ["model.backbone_weights=none", "training.checkpoint_every=1000000", LONG_ENOUGH, *overrides]
    values: dict[str, Any] = {
        "recipe": load_recipe(setting.recipe, settings),
        "deepspeed_config": config,
        "data": (setting.shards,),
        "output_dir": setting.work / run,
        "max_steps": max_steps,
        "resume": "auto",
        "init_from": None,
    }
    return TrainArguments(**{**values, **changes})


def train_here(given: TrainArguments) -> None:
    """In this process."""
    train(given, the_world())


def curve(run: Path, name: str) -> dict[int, float]:
    """A curve of TensorBoard's, by step; of repeated steps the last."""
    events = EventAccumulator(str(run / TENSORBOARD))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def trained_run(setting: Setting) -> Path:
    """A run with a checkpoint: that of the check of 30 steps in fp32, else one of two steps."""
    run = setting.work / "steps-fp32"
    if not (run / "checkpoints" / "latest").exists():
        train_here(arguments(setting, run.name, 2))
    return run
