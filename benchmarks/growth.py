"""How the time of one level's C-MoE grows with tokens, leaders and banks; each beside that of its table's first row.

Every token is of a sample of its own. Maps are invented; the level is the recipe's second.

Letters: B samples, C channels of the level, h x w positions.
"""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.decoders import decoder_model, invented_maps, joined_distances, with_given_maps
from benchmarks.recipes import measured_recipe
from benchmarks.workbench import LEADER_STD, evaluation_form
from unimmad.config import ModelSettings, Precision, TrainingSettings
from unimmad.evaluation.scoring import named_device
from unimmad.model.backends.tf32 import choose_for_training, without_tf32
from unimmad.profiling.timing import Work, interleaved_seconds
from unimmad.report.table import Table

LEVEL = 1
"""The recipe's second, of stride 8."""
WARM_UPS = 2


@dataclass(frozen=True)
class Size:
    """What one row measures."""

    tokens: int
    leaders: int
    banks: int


@dataclass(frozen=True)
class Growth:
    """A table: one of a size's numbers grows."""

    recipe: str
    device: str
    precision: Precision
    grows: str
    """Field of ``Size``."""
    sizes: tuple[Size, ...]
    repeats: int


def growth_tables(recipe_name: str, device: str, precision: Precision, repeats: int) -> str:
    """Measure and give the three tables.

    Raises:
        ValueError: no such recipe or device.
    """
    named_device(device)
    settings = measured_recipe(recipe_name).model
    base = Size(2, settings.leaders, settings.banks)
    grown = {
        "tokens": [replace(base, tokens=count) for count in (1, 2, 4, 8, 16, 32)],
        "leaders": [replace(base, leaders=settings.leaders * factor) for factor in (1, 2, 4, 8, 16, 32)],
        "banks": [
            replace(base, banks=settings.banks * factor) for factor in (1, 2, 4, 8, 16) if fits(settings, factor)
        ],
    }
    context = multiprocessing.get_context("spawn")
    tables = []
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        for grows, sizes in grown.items():
            case = Growth(recipe_name, device, precision, grows, tuple(sizes), repeats)
            tables.append(growth_table(case, pool.submit(measure_growth, case).result()))
    told = (
        f"C-MoE of level {LEVEL + 1} of recipe {recipe_name}, {device}, {precision}, medians of {repeats} runs in turns"
    )
    return "\n\n".join([told, *tables])


def fits(settings: ModelSettings, factor: int) -> bool:
    """Whether the leaders can be shared among so many times the banks."""
    return settings.leaders % (settings.banks * factor) == 0


def measure_growth(case: Growth) -> dict[Size, tuple[float, float]]:
    """Median seconds of inference, and of forward and backward, for every size."""
    device = named_device(case.device)
    settings = measured_recipe(case.recipe).model
    medians = []
    for make in (inference, forward_and_backward):
        works = {str(size): make(settings, size, device, case.precision) for size in case.sizes}
        interleaved_seconds(works, WARM_UPS, device, f"{case.grows}: warm-up")
        seconds = interleaved_seconds(works, case.repeats, device, case.grows)
        medians.append([statistics.median(found) for found in seconds.values()])
    return dict(zip(case.sizes, zip(*medians, strict=True), strict=True))


def inference(settings: ModelSettings, size: Size, device: torch.device, precision: Precision) -> Work:
    """The level as evaluation runs it."""
    network, arguments, _ = one_level(settings, size, device, training=False)

    @torch.inference_mode()
    @without_tf32()
    def infer() -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return joined_distances(network(*arguments))

    return infer


def forward_and_backward(settings: ModelSettings, size: Size, device: torch.device, precision: Precision) -> Work:
    """The level as training runs it, with gradients of its weights and of the shared map."""
    choose_for_training(TrainingSettings().tf32, device)
    network, arguments, shared_BChw = one_level(settings, size, device, training=True)
    shared_BChw.requires_grad_()

    def there_and_back() -> Tensor:
        network.zero_grad()
        shared_BChw.grad = None
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = network(*arguments)
        loss = joined_distances(output).sum()
        loss.backward()
        return loss.detach()[None]

    return there_and_back


def one_level(
    settings: ModelSettings, size: Size, device: torch.device, training: bool
) -> tuple[Any, tuple[Tensor, tuple[int, ...], Tensor], Tensor]:
    """A network of one level only, what to call it with, and the shared map [B, C, h, w]."""
    grown = settings.model_copy(update={"leaders": size.leaders, "banks": size.banks, "initial_leader_std": LEADER_STD})
    model = decoder_model(grown, device, [LEVEL])
    shared, teacher = invented_maps(model, size.tokens, size.tokens, device, [LEVEL])
    network = with_given_maps(model.train() if training else evaluation_form(model), shared, teacher)
    images_TCHW = torch.zeros(size.tokens, 3, settings.image_size, settings.image_size, device=device)
    slots = torch.zeros(size.tokens, dtype=torch.int64, device=device)
    return network, (images_TCHW, (1,) * size.tokens, slots), shared[0]


def growth_table(case: Growth, found: dict[Size, tuple[float, float]]) -> str:
    """Markdown."""
    base = next(iter(found.values()))
    rows = [[str(getattr(size, case.grows)), *_times(seconds, base)] for size, seconds in found.items()]
    heads = [case.grows, "inference, ms", "of the first", "forward and backward, ms", "of the first"]
    return Table(heads, rows).to_markdown() + _fixed(case)


def _times(seconds: Sequence[float], base: Sequence[float]) -> list[str]:
    pairs = zip(seconds, base, strict=True)
    return [text for each, first in pairs for text in (f"{each * 1e3:.1f}", f"{each / first:.2f}")]


def _fixed(case: Growth) -> str:
    size = case.sizes[0]
    return ", ".join(f"{getattr(size, name)} {name}" for name in ("tokens", "leaders", "banks") if name != case.grows)
