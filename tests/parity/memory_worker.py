"""What a rank holds with as many banks as ranks: one training step with Adam, every tensor counted.

deepspeed --num_accelerators 4 memory_worker.py SHARDS OUTPUT
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity.cases import Problem
from parity.problem import Batches, starting_model, weights_of_tokens

from unimmad.parallel.deepspeed_config import DeepSpeedSettings
from unimmad.parallel.engine import Engine, build_engine
from unimmad.parallel.world import World, join_world, leave_world
from unimmad.training.micro_step import micro_step

EMBED_DIM = 64
"""Wide enough that banks are most of the trainable model."""


@dataclass(frozen=True)
class Memory:
    """Bytes of the rank that holds most."""

    ranks: int
    banks: int
    bank_state: int
    """Bank parameters with their gradients and Adam's two moments."""
    state: int
    """The same of all trained parameters."""
    peak_resident: int
    """Of the whole process, libraries included."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--local_rank", type=int)
    options = parser.parse_args()
    world = join_world()
    memory = measure(options.shards, world)
    if world.is_main:
        options.output.write_text(json.dumps(asdict(memory)))
    leave_world()


def measure(shards: Path, world: World) -> Memory:
    banks = world.size
    problem = Problem(
        "memory", overrides=(f"model.banks={banks}", f"model.embed_dim={EMBED_DIM}", "training.optimizer=adam")
    )
    batches = Batches(shards, problem)
    settings = problem.recipe.training
    engine = build_engine(starting_model(problem, batches), DeepSpeedSettings({}, banks, 0), settings, world, banks)
    gradient_bytes: dict[int, int] = {}

    def count_gradients(*_: object) -> None:
        gradient_bytes.update(
            {id(placed.parameter): placed.parameter.grad.nbytes for placed in engine.parameters()}  # type: ignore[union-attr]
        )

    engine.torch_optimizer.register_step_pre_hook(count_gradients)
    share = len(problem.counts) // world.size
    batch = batches.at(0, slice(world.rank * share, (world.rank + 1) * share))
    micro_step(engine, batch, weights_of_tokens(batch), settings)
    of_banks = _state(engine, gradient_bytes, only=".bank.")
    return Memory(
        ranks=world.size,
        banks=banks,
        bank_state=_most(of_banks, world),
        state=_most(_state(engine, gradient_bytes), world),
        peak_resident=_most(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, world),
    )


def _state(engine: Engine, gradient_bytes: dict[int, int], only: str = "") -> int:
    total = 0
    for placed in engine.parameters():
        if only in placed.name:
            moments = engine.optimizer_state(placed.parameter)
            total += placed.parameter.nbytes + gradient_bytes[id(placed.parameter)]
            total += sum(moments[key].nbytes for key in ("exp_avg", "exp_avg_sq"))
    return total


def _most(value: int, world: World) -> int:
    most = torch.tensor(value)
    if world.size > 1:
        dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


if __name__ == "__main__":
    main()
