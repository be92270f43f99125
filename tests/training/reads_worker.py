"""What a step reads back to the host where leaders live on other ranks. Started by tests.

deepspeed --num_accelerators 2 reads_worker.py SHARDS FOLDER

Rank r writes FOLDER/r.json: for each ZeRO stage and step what ``host_reads`` found. What a plan of all dispatches reads
after its first fetch from the device is left out: it goes on with values that are on the host already.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from host_reads import host_reads
from parity.cases import Problem
from parity.problem import Batches, starting_model, weights_of_tokens

from unimmad.parallel import moe
from unimmad.parallel.deepspeed_config import DeepSpeedSettings
from unimmad.parallel.engine import build_engine
from unimmad.parallel.world import World, join_world, leave_world
from unimmad.training.micro_step import LossGuard, micro_step

ZERO_STAGES = (0, 1, 2)
STEPS = 2
FETCH = "cpu"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--local_rank", type=int)
    options = parser.parse_args()
    world = join_world()
    found = [reads_of_steps(options.shards, world, zero_stage) for zero_stage in ZERO_STAGES]
    (options.folder / f"{world.rank}.json").write_text(json.dumps(found))
    leave_world()


def reads_of_steps(shards: Path, world: World, zero_stage: int) -> list[list[str]]:
    problem = Problem("reading", overrides=("training.optimizer=adam",))
    batches, settings = Batches(shards, problem), problem.recipe.training
    given = DeepSpeedSettings({"zero_optimization": {"stage": zero_stage}}, world.size, zero_stage)
    engine = build_engine(starting_model(problem, batches), given, settings, world, world.size)
    guard = LossGuard(engine)
    share = len(problem.counts) // world.size
    found = []
    for step in range(STEPS):
        batch = batches.at(step, slice(world.rank * share, (world.rank + 1) * share))
        weight_of_token_T = weights_of_tokens(batch)
        with host_reads() as names:
            leave_out_what_plans_read_on_the_host(names)
            _, loss = micro_step(engine, batch, weight_of_token_T, settings)
            guard.watch(step, loss.total)
        found.append(names)
    return found


plan_dispatches = moe.plan_dispatches


def leave_out_what_plans_read_on_the_host(names: list[str]) -> None:
    def plan(*arguments: Any) -> Any:
        before = len(names)
        plans = plan_dispatches(*arguments)
        of_plan = names[before:]
        names[before:] = [*of_plan[: of_plan.index(FETCH)], *[FETCH] * of_plan.count(FETCH)]
        return plans

    moe.plan_dispatches = plan


if __name__ == "__main__":
    main()
