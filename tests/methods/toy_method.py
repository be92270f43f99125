"""A method as somebody adds one: this file, a recipe that names it, and a registry that has it.

Run as a program it trains, scores and compares the toy and a memory bank as the project's own commands do, all in this
process, and exports the toy:

    python toy_method.py SHARDS OUTPUT RECIPE
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from unimmad.config.fields import Positive
from unimmad.config.method import MethodSettings, TimmName
from unimmad.methods.registry import METHODS, MethodType, Registry
from unimmad.methods.single_image import SingleImageMethod
from unimmad.model.method import StepFacts


class ToySettings(MethodSettings):
    """Of the recipe's section ``model``."""

    backbone: TimmName = "none"
    backbone_weights: str = "none"
    width: Positive = 4


class Toy(SingleImageMethod[tuple[Tensor, Tensor]]):
    """Two convolutions give back the image; a pixel is as anomalous as it is far from its own."""

    def __init__(self, settings: ToySettings) -> None:
        super().__init__()
        self.settings = settings
        first, last = nn.Conv2d(3, settings.width, 3, padding=1), nn.Conv2d(settings.width, 3, 3, padding=1)
        self.network = nn.Sequential(first, nn.ReLU(), last)

    def load_backbone(self) -> str:
        return "none"

    def compare(self, images_TCHW: Tensor) -> tuple[Tensor, Tensor]:
        return images_TCHW, self.network(images_TCHW)

    def token_losses(self, compared: tuple[Tensor, Tensor], facts: StepFacts) -> Tensor:
        return (compared[0] - compared[1]).square().mean((1, 2, 3))

    def token_maps(self, compared: tuple[Tensor, Tensor]) -> Tensor:
        return (compared[0] - compared[1]).square().sum(1)


RECIPE = """
method: toy
model: {image_size: 32, width: 3}
data: {workers: 0}
training: {global_batch: 2, steps: 2, learning_rate: 0.01, checkpoint_every: 1, evaluate_every: 2}
evaluation: {blur_sigma: 1.0, blur_kernel: 5, batch_size: 2}
"""
REGISTRY: Registry = {**METHODS, "toy": MethodType(ToySettings, Toy)}


def main(shards: Path, output: Path, recipe: Path) -> int:
    """Compare, then export; 0 where all went well."""
    from unimmad.cli import compare
    from unimmad.comparing import running

    running._command = in_this_process
    words = ["--methods", f"{recipe},memory_bank", "--recipe", str(recipe), "--data", str(shards)]
    smallest = "memory_bank:model.backbone=resnet18"
    status = compare.main([*words, "--set", smallest, "--output-dir", str(output)], REGISTRY)
    return status or export(output / "toy" / "seed_0" / "run", output / "toy.pt2")


def in_this_process(name: str, words: Sequence[str]) -> None:
    """What a command of a comparison does; a process of its own would know no method but the project's."""
    after = {word: words[place + 1] for place, word in enumerate(words[:-1])}
    {"train": train, "evaluate": evaluate, "cost": cost}[name](words, after)


def train(words: Sequence[str], _: dict[str, str]) -> None:
    from unimmad.parallel.world import join_world
    from unimmad.training.arguments import parse_arguments
    from unimmad.training.run import train as train_run

    assert train_run(parse_arguments(words[list(words).index("train") + 1 :], methods=REGISTRY), join_world())


def evaluate(_: Sequence[str], after: dict[str, str]) -> None:
    from unimmad.checkpoint.folder import find_checkpoint
    from unimmad.checkpoint.loading import load_checkpoint
    from unimmad.evaluation.evaluate import evaluate_checkpoint

    checkpoint = load_checkpoint(find_checkpoint(Path(after["--checkpoint"])), methods=REGISTRY)
    output, data = Path(after["--output-dir"]), [Path(after["--data"])]
    evaluate_checkpoint(checkpoint, data, output, device=torch.device("cpu"), workers=0, progress=False)


def cost(words: Sequence[str], after: dict[str, str]) -> None:
    from unimmad.comparing.cost import measure

    run, target = words[list(words).index("unimmad.comparing.cost") + 1 :][:2]
    measured = measure(Path(run), [Path(after["--data"])], torch.device("cpu"), None, REGISTRY)
    Path(target).write_text(measured.model_dump_json())


def export(run: Path, target: Path) -> int:
    from unimmad.checkpoint.folder import find_checkpoint
    from unimmad.checkpoint.loading import load_checkpoint
    from unimmad.inference.catalogue_sources import checkpoint_catalogue
    from unimmad.inference.export.files import write_torch
    from unimmad.inference.export.program import build_program

    checkpoint = load_checkpoint(find_checkpoint(run), methods=REGISTRY)
    write_torch(*build_program(checkpoint, checkpoint_catalogue(checkpoint, None, None), None, version="1"), target)
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
