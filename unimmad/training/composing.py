"""Which branches compose their kernels in training: those where the device at hand is faster so.

Counting multiply-adds, the fixed rule (``composing_is_cheaper``), takes convolutions and matrix products for equally
fast; a GPU's tensor cores are not asked. So a new run on a GPU measures: rank 0 each level and kernel size both ways,
forward and backward, in training's precision. All ranks follow it, since ZeRO reduces gradients in the order in which
they come, and the checkpoint keeps it, so that a resumed run computes as before, wherever it goes on. The rule decides
in runs that began on a CPU, with ``--deterministic``, or without a measurement.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from unimmad.checkpoint.state import COMPOSING
from unimmad.config import ModelSettings, Recipe
from unimmad.model.cross_moe import CrossMoE, MiMoEBranch
from unimmad.model.level_networks import level_strides
from unimmad.model.method import Method
from unimmad.parallel.world import World
from unimmad.profiling.timing import Work, interleaved_seconds

Composing = tuple[tuple[bool, ...], ...]
"""By level, the finest first, then kernel size: whether a token's kernel is composed."""
Timer = Callable[[Mapping[str, Work], int, torch.device, str], dict[str, list[float]]]
"""As ``interleaved_seconds``."""

WARM_UPS = 3
REPEATS = 10
LEADER_STD = 1.0
"""Of the leaders' logits: at the paper's start all leaders are almost equal."""
WAYS = {True: "composed", False: "one after the other"}


@dataclass(frozen=True)
class Place:
    """A branch's place in the decoder."""

    level: int
    """From 0, the finest."""
    kernel_size: int


def new_composing(
    recipe: Recipe, world: World, tokens_per_sample: tuple[int, ...], timer: Timer = interleaved_seconds
) -> Composing:
    """Rank 0's measurement, on every rank. Collective.

    Args:
        recipe: its model and training precision.
        world: all ranks.
        tokens_per_sample: of a batch as a rank usually has it.
        timer: takes the times.
    """

    def measured() -> Composing:
        return tuple(
            tuple(
                composed < apart
                for composed, apart in (
                    measure_place(
                        recipe.model,
                        Place(level, size),
                        world.device,
                        recipe.training.precision,
                        tokens_per_sample,
                        REPEATS,
                        timer,
                    )
                    for size in recipe.model.kernel_sizes
                )
            )
            for level in range(recipe.model.level_count)
        )

    return world.on_main(measured)


def kept_composing(state: Mapping[str, Any], model: ModelSettings, where: str) -> Composing | None:
    """What a checkpoint's state says; None where the run goes by the fixed rule.

    Raises:
        ValueError: it says it for another model, or in another form; names ``where``.
    """
    kept = state.get(COMPOSING)
    if kept is None:
        return None
    branches = len(model.kernel_sizes)
    if not (
        isinstance(kept, list)
        and len(kept) == model.level_count
        and all(isinstance(row, list) and len(row) == branches for row in kept)
        and all(isinstance(value, bool) for row in kept for value in row)
    ):
        raise ValueError(
            f"{where}: {COMPOSING} must be {model.level_count} lists of {branches} truth values, one a kernel size; "
            "without the key the fixed rule decides"
        )
    return tuple(tuple(row) for row in kept)


def follow_composing(model: Method, composing: Composing) -> None:
    """From now on the branches of ``model`` compute so."""
    for level, of_level in zip(cast(list[CrossMoE], model.get_submodule("levels")), composing, strict=True):
        for branch, composed in zip(cast(list[MiMoEBranch], level.branches), of_level, strict=True):
            branch.composed = composed


def described(composing: Composing | None, kernel_sizes: tuple[int, ...]) -> str:
    """In words, for the log."""
    if composing is None:
        return "composes kernels by the count of multiply-adds"
    places = [
        f"level {level} {size} x {size}"
        for level, of_level in enumerate(composing, start=1)
        for size, composed in zip(kernel_sizes, of_level, strict=True)
        if composed
    ]
    return f"composes kernels where that was measured to be faster: {', '.join(places) or 'nowhere'}"


def measure_place(
    settings: ModelSettings,
    place: Place,
    device: torch.device,
    precision: str,
    tokens_per_sample: tuple[int, ...],
    repeats: int,
    timer: Timer = interleaved_seconds,
) -> tuple[float, float]:
    """Median seconds of a branch's forward and backward pass on invented maps: composed, and one after the other."""
    works = {
        name: there_and_back(settings, place, device, precision, tokens_per_sample, composed)
        for composed, name in WAYS.items()
    }
    label = f"level {place.level + 1}, kernel {place.kernel_size}"
    timer(works, WARM_UPS, device, f"{label}: warm-up")
    seconds = timer(works, repeats, device, label)
    return statistics.median(seconds[WAYS[True]]), statistics.median(seconds[WAYS[False]])


def there_and_back(
    settings: ModelSettings,
    place: Place,
    device: torch.device,
    precision: str,
    tokens_per_sample: tuple[int, ...],
    composed: bool,
) -> Work:
    """A branch's forward and backward pass, one way; gives all its gradients in one row."""
    generator = torch.Generator().manual_seed(place.level)
    branch = _branch(settings, place).to(device)
    branch.composed = composed
    side, samples, tokens = side_of(settings, place), len(tokens_per_sample), sum(tokens_per_sample)
    key_BEhw = torch.randn(samples, settings.embed_dim, side, side, generator=generator).to(device).requires_grad_()
    condition_TE = torch.randn(tokens, settings.embed_dim, generator=generator).to(device)
    weight_TEhw = torch.randn(tokens, settings.embed_dim, side, side, generator=generator).to(device)
    sample_of_token_T = torch.arange(samples).repeat_interleave(torch.tensor(tokens_per_sample)).to(device)
    learned = [key_BEhw, *branch.parameters()]

    def work() -> Tensor:
        for tensor in learned:
            tensor.grad = None
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            output_TEhw = branch(key_BEhw, branch.routed.route(condition_TE), tokens_per_sample, sample_of_token_T)
        (output_TEhw * weight_TEhw).sum().backward()
        return torch.cat([tensor.grad.flatten() for tensor in learned if tensor.grad is not None])

    return work


def side_of(settings: ModelSettings, place: Place) -> int:
    """Height and width of the maps at a place."""
    return settings.image_size // level_strides(settings)[place.level]


def _branch(settings: ModelSettings, place: Place) -> MiMoEBranch:
    """The same weights at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(place.kernel_size)
        return MiMoEBranch(place.kernel_size, settings.model_copy(update={"initial_leader_std": LEADER_STD}))
