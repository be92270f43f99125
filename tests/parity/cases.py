"""What parity is measured on: one global batch, spread over ranks in every way, and in the ways that used to break."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from unimmad.config import Recipe, load_recipe

MIXED = (1, 2, 4, 1, 3, 1, 2, 4)
"""Modalities of each sample of the global batch: every rank gets another number of tokens."""
ONE_EACH = (1, 4, 2, 3)
"""On four ranks each has one sample; the first rank's is of one modality."""

STEPS = 5
LEARNING_RATE = 0.01
"""Five steps move weights by up to a hundredth: an error in a gradient shows, and rounding is not blown up."""


@dataclass(frozen=True)
class Problem:
    """What is computed; independent of where."""

    name: str
    counts: tuple[int, ...] = MIXED
    overrides: tuple[str, ...] = ()
    favoured: tuple[int, ...] = ()
    """Leaders whose gate bias is raised so that every token goes to them."""
    accumulation: int = 1

    @property
    def recipe(self) -> Recipe:
        return load_recipe(
            "tiny",
            [
                f"training.global_batch={len(self.counts) * self.accumulation}",
                f"training.accumulation={self.accumulation}",
                f"training.learning_rate={LEARNING_RATE}",
                "training.optimizer=sgd",
                *self.overrides,
            ],
        )


@dataclass(frozen=True)
class Layout:
    """Where it is computed."""

    world: int
    ep_size: int
    zero_stage: int

    def __str__(self) -> str:
        return f"world {self.world}, ep {self.ep_size}, ZeRO {self.zero_stage}"


@dataclass(frozen=True)
class Case:
    problem: Problem
    layout: Layout

    @property
    def name(self) -> str:
        layout = self.layout
        return f"{self.problem.name.replace(' ', '-')}-w{layout.world}-e{layout.ep_size}-z{layout.zero_stage}"


BASE = Problem("batch")
CLIPPED = Problem("clipped", overrides=("training.gradient_clipping=0.01",))
ACCUMULATED = Problem("accumulated", accumulation=2, overrides=("training.gradient_clipping=0.01",))
BANKS = {
    2: Problem("2 banks", counts=ONE_EACH, overrides=("model.banks=2",)),  # of MIXED two leaders are nearly alike
    4: Problem("4 banks", overrides=("model.banks=4",)),
}
ONE_LEADER = Problem("one leader", overrides=("model.top_k=1",), favoured=(0,))
# Leaders that differ: else the gate's gradient is the difference of two outputs that are nearly alike.
LEADERS_OF_ONE_RANK = Problem("leaders of one rank", overrides=("model.initial_leader_std=1.0",), favoured=(6, 7))
LONELY = Problem("one sample a rank", counts=ONE_EACH)
SKEWED_BANKS = Problem(
    "one leader of 4 banks", counts=ONE_EACH, overrides=("model.banks=4", "model.top_k=1"), favoured=(2,)
)
BF16 = Problem("bf16", overrides=("training.precision=bf16",))

SHORT = [
    *[Case(problem, Layout(2, 2, 1)) for problem in (BASE, ONE_LEADER, BANKS[2], BF16)],
    Case(CLIPPED, Layout(2, 2, 0)),
    Case(ACCUMULATED, Layout(2, 2, 2)),
    Case(BASE, Layout(4, 2, 2)),
    Case(SKEWED_BANKS, Layout(4, 4, 0)),
    Case(LONELY, Layout(4, 4, 1)),
    Case(LONELY, Layout(4, 1, 2)),
]
"""One layout of each kind, and ranks whose batches differ most where ZeRO 2 mixes gradients in buckets."""

LAYOUTS = [Layout(world, ep, zero) for world in (1, 2, 4) for ep in (1, 2, 4) if ep <= world for zero in (0, 1, 2)]


def layouts(worlds: Sequence[int], ep_sizes: Sequence[int], zero_stages: Sequence[int]) -> list[Layout]:
    wanted = (set(worlds), set(ep_sizes), set(zero_stages))
    return [layout for layout in LAYOUTS if all(map(operator.contains, wanted, astuple(layout)))]


FULL = [
    *[Case(BASE, layout) for layout in LAYOUTS],
    *[Case(CLIPPED, layout) for layout in layouts((2, 4), (2, 4), (0, 1, 2))],
    *[Case(ACCUMULATED, layout) for layout in layouts((2, 4), (1, 2, 4), (0, 2))],
    *[Case(BANKS[2], layout) for layout in layouts((2, 4), (2,), (1,))],
    *[Case(BANKS[4], layout) for layout in (*layouts((4,), (1, 2, 4), (1,)), *layouts((4,), (4,), (0, 2)))],
    *[
        Case(problem, layout)
        for problem in (ONE_LEADER, LEADERS_OF_ONE_RANK)
        for layout in layouts((2, 4), (2, 4), (1,))
    ],
    *[Case(problem, layout) for problem in (LONELY, SKEWED_BANKS) for layout in layouts((4,), (1, 2, 4), (0, 2))],
    *[Case(BF16, layout) for layout in layouts((1, 2, 4), (1, 2, 4), (1,))],
]
"""The batch everywhere; each of the others where it could matter."""
