"""Counts the collectives of one micro-step. Started by tests; for the table of docs/parallel.md by hand.

deepspeed --num_accelerators 2 collectives_worker.py FOLDER --recipe tiny [--set KEY=VALUE]...

Rank r writes FOLDER/r.json: counts at ep_size 1 and at the number of ranks, with ZeRO 1. Images are noise and small:
neither their values nor their size change a count.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.counted_collectives import counted_collectives

from unimmad.config import Recipe, load_recipe
from unimmad.data.sample import Batch, Sample, collate
from unimmad.methods.registry import new_model
from unimmad.parallel.batchnorm import GlobalBatchNorm2d
from unimmad.parallel.deepspeed_config import DeepSpeedSettings
from unimmad.parallel.engine import build_engine
from unimmad.parallel.world import World, join_world, leave_world
from unimmad.training.micro_step import micro_step

ZERO_STAGE = 1
SAMPLES = 2
"""Of a rank; the second has two modalities."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--local_rank", type=int)
    options = parser.parse_args()
    world = join_world()
    overrides = ["model.image_size=64", "model.backbone_weights=none", f"training.global_batch={SAMPLES * world.size}"]
    recipe = load_recipe(options.recipe, [*overrides, *options.set])
    counts = {}
    for ep_size in (1, world.size):
        counts[ep_size] = count(recipe, world, ep_size)
        gc.collect()
    (options.folder / f"{world.rank}.json").write_text(json.dumps(counts, indent=1))
    leave_world()


def count(recipe: Recipe, world: World, ep_size: int) -> dict[str, int]:
    """Collectives of a micro-step that is a whole step, and beside them what they depend on: BatchNorms and gates."""
    model, _ = new_model(recipe, seed=0)
    given = DeepSpeedSettings({"zero_optimization": {"stage": ZERO_STAGE}}, ep_size, ZERO_STAGE)
    engine = build_engine(model, given, recipe.training, world, ep_size)
    batch = noise(recipe.model.image_size)
    weight_of_token_T = torch.ones(len(batch.slot_of_token_T))
    with counted_collectives() as counts:
        micro_step(engine, batch, weight_of_token_T, recipe.training)
    engine.deepspeed.destroy()
    layers = sum(isinstance(module, GlobalBatchNorm2d) for module in engine.model.modules())
    return {"batchnorms": layers, "gates": len(recipe.model.kernel_sizes) * len(engine.model.levels), **counts}


def noise(image_size: int) -> Batch:
    samples = []
    for sample in range(SAMPLES):
        slots = tuple(range(sample + 1))
        names = tuple(f"modality {slot}" for slot in slots)
        images_MCHW = torch.randn(len(slots), 3, image_size, image_size)
        samples.append(Sample(f"{sample}", "noise", "noise/noise", "good", False, names, slots, images_MCHW, None))
    return collate(samples)


if __name__ == "__main__":
    main()
