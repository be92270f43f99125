"""Whether training composes a branch's kernels where that is faster: both ways by the clock, beside the choice.

A branch's forward and backward pass at each level and kernel size of a recipe, on invented maps.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from unimmad.benchmarks.markdown import markdown_table
from unimmad.benchmarks.workbench import LEADER_STD
from unimmad.config import ModelSettings, load_recipe
from unimmad.evaluation.scoring import Precision, named_device
from unimmad.model.backbone import STRIDES
from unimmad.model.cross_moe import MiMoEBranch, composing_is_cheaper
from unimmad.timing import Work, interleaved_seconds

WARM_UPS = 1
SAMPLES = 2
WAYS = {True: "composed", False: "one after the other"}


@dataclass(frozen=True)
class Place:
    """A branch's place in the decoder."""

    level: int
    """From 0, the finest."""
    kernel_size: int


def composing_table(
    recipe_name: str, device_name: str, precision: Precision, modalities: int, repeats: int, samples: int = SAMPLES
) -> str:
    """Measure, and give the table: ``samples`` samples of ``modalities`` tokens.

    Raises:
        ValueError: no such recipe or device.
    """
    device = named_device(device_name)
    settings = load_recipe(recipe_name).model
    rows = []
    for place in [Place(level, size) for level in range(len(STRIDES)) for size in settings.kernel_sizes]:
        composed, apart = measure_place(settings, place, device, precision, (modalities,) * samples, repeats)
        chosen = composing_is_cheaper(settings.embed_dim, _side(settings, place) ** 2, place.kernel_size)
        side, size = _side(settings, place), place.kernel_size
        rows.append(
            [
                f"{side} x {side}",
                f"{size} x {size}",
                f"{composed * 1e3:.1f}",
                f"{apart * 1e3:.1f}",
                WAYS[chosen],
                f"{(apart / composed if chosen else composed / apart):.2f}",
            ]
        )
    told = (
        f"a branch of recipe {recipe_name}, forward and backward, {samples} samples of {modalities} tokens, {device}, "
        f"{precision}, medians of {repeats} runs in turns"
    )
    heads = ["map", "kernel", "composed, ms", "one after the other, ms", "training's choice", "times as fast"]
    return "\n\n".join([told, "\n".join(markdown_table(heads, rows))])


def measure_place(
    settings: ModelSettings,
    place: Place,
    device: torch.device,
    precision: Precision,
    tokens_per_sample: tuple[int, ...],
    repeats: int,
) -> tuple[float, float]:
    """Median seconds: composed, and one after the other."""
    works = {
        name: there_and_back(settings, place, device, precision, tokens_per_sample, composed)
        for composed, name in WAYS.items()
    }
    label = f"level {place.level + 1}, kernel {place.kernel_size}"
    interleaved_seconds(works, WARM_UPS, device, f"{label}: warm-up")
    seconds = interleaved_seconds(works, repeats, device, label)
    return statistics.median(seconds[WAYS[True]]), statistics.median(seconds[WAYS[False]])


def there_and_back(
    settings: ModelSettings,
    place: Place,
    device: torch.device,
    precision: Precision,
    tokens_per_sample: tuple[int, ...],
    composed: bool,
) -> Work:
    """A branch's forward and backward pass, one way; gives all its gradients in one row."""
    generator = torch.Generator().manual_seed(place.level)
    branch = _branch(settings, place).to(device)
    branch.composing_pays = lambda *_: composed
    side, samples, tokens = _side(settings, place), len(tokens_per_sample), sum(tokens_per_sample)
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


def _branch(settings: ModelSettings, place: Place) -> MiMoEBranch:
    """The same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(place.kernel_size)
        return MiMoEBranch(
            settings.embed_dim,
            place.kernel_size,
            settings.leaders,
            settings.base_experts,
            settings.top_k,
            settings.banks,
            LEADER_STD,
        )


def _side(settings: ModelSettings, place: Place) -> int:
    return settings.image_size // STRIDES[place.level]
