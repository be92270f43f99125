"""What a checkpoint costs: seconds to save a run, to verify it and to take it up again, by ZeRO stage, at one rank.

Weights are random and Adam has taken a step. Saving and resuming run in processes of their own, so that the one's
memory is not the other's. What is resumed was just written, so it comes from the system's memory where that has room.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.recipes import RECIPE_HELP, measured_recipe
from unimmad.checkpoint.digests import verify_checkpoint
from unimmad.checkpoint.folder import CheckpointFolder, find_checkpoint
from unimmad.checkpoint.loading import fill_model
from unimmad.checkpoint.tensor_slices import TensorReader
from unimmad.model.unimmad import UniMMAD
from unimmad.profiling.machine import peak_bytes
from unimmad.profiling.timing import synchronise
from unimmad.report.table import Table

if TYPE_CHECKING:
    from unimmad.parallel.engine import Engine

HELP = "seconds to save, to verify and to resume a training run"
GB = 10**9


@dataclass(frozen=True)
class Cost:
    """Of saving, verifying or resuming."""

    seconds: dict[str, float]
    """By part: weights, optimizer; saving is one part, and so is verifying."""
    peak_bytes: int
    """As ``machine.peak_bytes``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("--recipe", default="paper", help=f"{RECIPE_HELP} (default: paper)")
    parser.add_argument("--zero", type=int, nargs="+", choices=[0, 1, 2], default=[0, 1], help="default: 0 1")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written for a while (default: temporary)")


def run(arguments: argparse.Namespace) -> str:
    """The table.

    Raises:
        ValueError: no such recipe, or no such folder.
    """
    recipe = measured_recipe(arguments.recipe)
    if arguments.folder is not None and not arguments.folder.is_dir():
        raise ValueError(f"--folder {arguments.folder} is not a folder")
    rows, written = [], 0
    context = multiprocessing.get_context("spawn")
    for stage in arguments.zero:
        with (
            tempfile.TemporaryDirectory(dir=arguments.folder) as folder,
            ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool,
        ):
            saved = pool.submit(save, arguments.recipe, stage, Path(folder)).result()
            written = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
            verified = pool.submit(verify, Path(folder)).result()
            resumed = pool.submit(resume, arguments.recipe, stage, Path(folder)).result()
        costs = {"save": saved, "verify": verified, "resume": resumed}
        rows += [_row(f"{task}, ZeRO {stage}", cost, written) for task, cost in costs.items()]
    heads = ["task", "seconds", "s a GB", "of which weights", "optimizer", "peak"]
    told = (
        f"recipe {recipe.name}, {written / GB:.2f} GB (of 10^9 bytes) in tensors; one rank; peak: on a CPU resident, "
        "the mapped checkpoint included; on a GPU allocated"
    )
    return Table(heads, rows).to_markdown() + told


def save(recipe_name: str, stage: int, folder: Path) -> Cost:
    """Write one checkpoint into the run folder ``folder``."""
    from unimmad.training.checkpointing import RunFacts, save_checkpoint  # DeepSpeed is needed here alone

    recipe = measured_recipe(recipe_name)
    engine = _engine(recipe_name, stage, UniMMAD(recipe.model))
    for group in engine.torch_optimizer.param_groups:
        for tensor in group["params"]:
            tensor.grad = torch.zeros_like(tensor)
    engine.torch_optimizer.step()
    engine.torch_optimizer.zero_grad()
    started = time.perf_counter()
    save_checkpoint(CheckpointFolder(folder), engine, RunFacts(recipe, "none", [], stage), 1, finished=False)
    return Cost({"": time.perf_counter() - started}, peak_bytes(engine.world.device))


def verify(folder: Path) -> Cost:
    """Hold the checkpoint of ``folder`` against its digests."""
    checkpoint = find_checkpoint(folder)
    started = time.perf_counter()
    verify_checkpoint(checkpoint)
    return Cost({"": time.perf_counter() - started}, peak_bytes(torch.device("cpu")))


def resume(recipe_name: str, stage: int, folder: Path) -> Cost:
    """Read the checkpoint of ``folder`` back into a fresh engine; building that is not counted."""
    from unimmad.training.checkpointing import restore_optimizer

    checkpoint = find_checkpoint(folder)
    model = UniMMAD(measured_recipe(recipe_name).model)
    started = time.perf_counter()
    fill_model(model, TensorReader(checkpoint))
    weights = time.perf_counter() - started
    engine = _engine(recipe_name, stage, model)
    started = time.perf_counter()
    restore_optimizer(engine, checkpoint, 1)
    synchronise(engine.world.device)
    return Cost({"weights": weights, "optimizer": time.perf_counter() - started}, peak_bytes(engine.world.device))


def _engine(recipe_name: str, stage: int, model: UniMMAD) -> Engine:
    from unimmad.parallel.deepspeed_config import DeepSpeedSettings
    from unimmad.parallel.engine import build_engine
    from unimmad.parallel.world import join_world

    settings = DeepSpeedSettings({"zero_optimization": {"stage": stage}}, 1, stage)
    return build_engine(model, settings, measured_recipe(recipe_name).training, join_world(), ep_size=1)


def _row(task: str, cost: Cost, written: int) -> list[str]:
    total = sum(cost.seconds.values())
    parts = [f"{cost.seconds[name]:.1f}" if name in cost.seconds else "" for name in ("weights", "optimizer")]
    return [task, f"{total:.1f}", f"{total * GB / written:.2f}", *parts, f"{cost.peak_bytes / 2**20:.0f} MiB"]
