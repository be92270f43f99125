"""The largest training batch that fits in a given memory, for the reference and for the model in two ways.

Activations are kept, or computed again (``training.activation_checkpointing``). On a GPU it is measured, by real steps.
Elsewhere steps are simulated on fake tensors, which have sizes but no values. Counted are weights (the teacher's, too),
gradients, Adam's moments, activations and images at their common peak in a plain PyTorch step at one rank; not what the
CUDA context takes for itself.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from tqdm import tqdm

from benchmarks.recipes import RECIPE_HELP, measured_recipe
from benchmarks.tensor_memory import StorageWatch
from benchmarks.workbench import Form, Workbench
from unimmad.config import Precision, Recipe
from unimmad.evaluation.scoring import named_device
from unimmad.model.backends.activation_checkpointing import recompute_activations
from unimmad.model.backends.private_torch import FakeTensorMode
from unimmad.report.table import Table

HELP = "the largest training batch in a given memory, measured on a GPU or simulated"
LARGEST_BATCH = 4096
"""Where growing ends even if it still fits."""
CHECKPOINTING = "ours, activation checkpointing"
ROWS: dict[str, Form] = {"reference": "reference", "ours": "ours", CHECKPOINTING: "ours"}
"""Name of a row and the form whose steps it takes."""


@dataclass(frozen=True)
class StepMemory:
    """Of a training step, in bytes."""

    peak: float
    """Infinite where the device had no room."""
    lasting: float
    """What stays behind it: weights, gradients, moments, images."""


MemoryOf = Callable[[int], StepMemory]
"""Of a step with so many samples."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommand's options."""
    parser.add_argument("--recipe", default="paper", help=f"{RECIPE_HELP} (default: paper)")
    parser.add_argument(
        "--gigabytes", type=float, nargs="+", default=[24.0, 80.0], help="of 10^9 bytes (default: 24 80)"
    )
    parser.add_argument("--modalities", type=int, default=2, help="of each sample (default: 2)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of ours (default: fp32)")
    parser.add_argument("--device", help="a GPU to measure on (default: where there is one)")
    parser.add_argument("--simulate", action="store_true", help="simulate where there is a GPU, too")


def run(arguments: argparse.Namespace) -> str:
    """The table.

    Raises:
        ValueError: no such recipe or device, a number that cannot be, or more modalities than the model has slots.
    """
    if arguments.modalities < 1 or min(arguments.gigabytes) <= 0:
        raise ValueError("give 1 or more --modalities and --gigabytes above 0")
    device = named_device(arguments.device)
    simulated = arguments.simulate or device.type != "cuda"
    recipe = measured_recipe(arguments.recipe)
    open_steps = simulated_steps if simulated else measured_steps
    rows = []
    with tqdm(desc="training steps", unit="batch", leave=False, disable=None) as bar:
        for name in ROWS:
            with open_steps(recipe, name, arguments.modalities, arguments.precision, device) as memory_of:
                remembered = cache(_announcing(memory_of, bar))
                rows += [_row(name, gigabytes, remembered) for gigabytes in arguments.gigabytes]
    heads = ["form", "memory, GB", "largest batch", "its peak, GB", "one sample more, GB", "lasting, GB"]
    how = "simulated on fake tensors; workspaces of operations and the allocator's rounding are not in it"
    if not simulated:
        how = f"measured on {torch.cuda.get_device_name(device)}"
    return "\n".join([Table(heads, rows).to_markdown(), *_notes(arguments, how)])


def largest_batch(memory_of: MemoryOf, limit: float) -> int:
    """The most samples whose step's peak is at most ``limit`` bytes; 0 where not even one fits.

    Doubles until it no longer fits, then looks where the line through the last two says. What it returns was tried, and
    one more was, too, unless ``LARGEST_BATCH`` fits.
    """
    fits, fails = 0, 1
    while memory_of(fails).peak <= limit:
        fits, fails = fails, 2 * fails
        if fits >= LARGEST_BATCH:
            return fits
    while fails - fits > 1:
        guess = (fits + fails) // 2
        if fits and memory_of(fails).peak < float("inf"):
            low, high = memory_of(fits).peak, memory_of(fails).peak
            guess = fits + int((limit - low) / (high - low) * (fails - fits))
        guess = min(max(guess, fits + 1), fails - 1)
        if memory_of(guess).peak <= limit:
            fits = guess
        else:
            fails = guess
    return fits


@contextmanager
def simulated_steps(
    recipe: Recipe, row: str, modalities: int, precision: Precision, _: torch.device | None = None
) -> Iterator[MemoryOf]:
    """Training steps on fake tensors."""
    with FakeTensorMode(), StorageWatch() as watch:
        bench, form = _bench(recipe, row, torch.device("cpu"), precision, modalities), ROWS[row]
        bench.training_step(form, 1)()  # the first step makes gradients and moments
        if form != "reference":
            # On a GPU its own weights wait on the host, for checkpoints.
            bench.model.set_submodule("teacher", nn.Identity())

        def memory_of(batch: int) -> StepMemory:
            step = bench.training_step(form, batch)
            gc.collect()
            watch.peak = watch.current
            step()
            gc.collect()
            return StepMemory(watch.peak, watch.current)

        yield memory_of


@contextmanager
def measured_steps(
    recipe: Recipe, row: str, modalities: int, precision: Precision, device: torch.device
) -> Iterator[MemoryOf]:
    """Training steps on a GPU."""
    bench, form = _bench(recipe, row, device, precision, modalities), ROWS[row]
    bench.training_step(form, 1)()

    def memory_of(batch: int) -> StepMemory:
        gc.collect()
        torch.cuda.empty_cache()
        try:
            step = bench.training_step(form, batch)
            torch.cuda.reset_peak_memory_stats(device)
            step()
        except torch.cuda.OutOfMemoryError:
            bench.model.zero_grad()
            return StepMemory(float("inf"), float("nan"))
        return StepMemory(torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device))

    yield memory_of


def _bench(recipe: Recipe, row: str, device: torch.device, precision: Precision, modalities: int) -> Workbench:
    bench = Workbench(recipe, device, precision, modalities, one_form=True)
    bench.fused_reference = True
    if row == CHECKPOINTING:
        recompute_activations(bench.model)
    return bench


def _announcing(memory_of: MemoryOf, bar: tqdm) -> MemoryOf:
    def announced(batch: int) -> StepMemory:
        bar.set_postfix(samples=batch)
        found = memory_of(batch)
        bar.update()
        return found

    return announced


def _row(name: str, gigabytes: float, memory_of: MemoryOf) -> list[str]:
    batch = largest_batch(memory_of, gigabytes * 1e9)
    more = memory_of(batch + 1).peak
    at_batch = [f"{memory_of(batch).peak / 1e9:.2f}", f"{memory_of(batch).lasting / 1e9:.2f}"] if batch else ["", ""]
    over = f"{more / 1e9:.2f}" if more < float("inf") else "no room"
    return [name, f"{gigabytes:g}", str(batch), at_batch[0], over, at_batch[1]]


def _notes(arguments: argparse.Namespace, how: str) -> list[str]:
    return [
        f"recipe {arguments.recipe}, {arguments.modalities} modalities a sample, ours in {arguments.precision}, the "
        f"reference in fp32; {how}",
        "counted: weights (the teacher's too), gradients, Adam's moments, activations and images, at their common peak "
        "in a plain PyTorch step at one rank; not the CUDA context. A GB is 10^9 bytes",
        "lasting: what stays behind a step",
    ]
