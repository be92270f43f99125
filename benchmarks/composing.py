"""Whether composing a branch's kernels is faster: both ways by the clock, beside the fixed rule's choice.

What training on a GPU measures at its start (training/composing.py), at each level and kernel size of a recipe.
"""

from __future__ import annotations

from benchmarks.recipes import measured_recipe
from unimmad.config import Precision
from unimmad.evaluation.scoring import named_device
from unimmad.model.backends.tf32 import choose_for_training
from unimmad.model.cross_moe import composing_is_cheaper
from unimmad.report.table import Table
from unimmad.training.composing import WAYS, Place, measure_place, side_of

SAMPLES = 2


def composing_table(
    recipe_name: str, device_name: str, precision: Precision, modalities: int, repeats: int, samples: int = SAMPLES
) -> str:
    """Measure, and give the table: ``samples`` samples of ``modalities`` tokens.

    Raises:
        ValueError: no such recipe or device.
    """
    device = named_device(device_name)
    recipe = measured_recipe(recipe_name)
    settings = recipe.model
    fp32 = choose_for_training(recipe.training.tf32, device)
    rows = []
    for place in [Place(level, size) for level in range(settings.level_count) for size in settings.kernel_sizes]:
        composed, apart = measure_place(settings, place, device, precision, (modalities,) * samples, repeats)
        chosen = composing_is_cheaper(settings.embed_dim, side_of(settings, place) ** 2, place.kernel_size)
        side, size = side_of(settings, place), place.kernel_size
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
        f"{precision}, {fp32}, medians of {repeats} runs in turns"
    )
    heads = ["map", "kernel", "composed, ms", "one after the other, ms", "the rule's choice", "times as fast"]
    return f"{told}\n\n{Table(heads, rows).to_markdown()}"
