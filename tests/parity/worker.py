"""Runs cases of one world and ep_size, one after the other; started by DeepSpeed's launcher on every rank.

    deepspeed --num_accelerators 4 worker.py SHARDS OUTPUT CASE... [--backend gloo]

What each case gives goes to OUTPUT/CASE.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from parity.cases import FULL, SHORT, STEPS, Case
from parity.problem import Batches, Smooth, starting_model, weights_of_tokens
from parity.record import Facts, leaders_of, margin_of, write_rank
from torch import Tensor

from unimmad.checkpoint.tensor_slices import TensorSlice
from unimmad.parallel.deepspeed_config import DeepSpeedSettings
from unimmad.parallel.dispatch import CommStats
from unimmad.parallel.engine import Engine, build_engine
from unimmad.parallel.world import World, join_world, leave_world
from unimmad.training.checkpointing import owned_optimizer_pieces, portable_piece, weight_pieces
from unimmad.training.micro_step import micro_step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shards", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--local_rank", type=int)
    parser.add_argument("--backend", help="of torch.distributed; gloo lets ranks share a GPU")
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    by_name = {case.name: case for case in (*SHORT, *FULL)}
    world = join_world(options.backend)
    for name in options.names:
        run_case(by_name[name], world, options.shards, options.output / name)
        gc.collect()
    leave_world()


class FirstGradients:
    """What the optimizer gets in its first step, whichever rank holds it, as pieces of portable tensors."""

    def __init__(self, engine: Engine) -> None:
        self.pieces: dict[tuple[str, int], TensorSlice] = {}
        self.done = False
        self._engine = engine
        engine.torch_optimizer.register_step_pre_hook(self._take)

    def _take(self, *_: object) -> None:
        """ZeRO steps one group of parameters after the other: those of the others have no gradient then."""
        if self.done:
            return
        for piece in owned_optimizer_pieces(self._engine):
            if piece.key.grad is not None:
                gradient = portable_piece(piece.name, piece, piece.key.grad.clone())
                self.pieces.setdefault((piece.name, piece.offset), gradient)


def run_case(case: Case, world: World, shards: Path, folder: Path) -> None:
    problem, layout = case.problem, case.layout
    assert layout.world == world.size, "the launcher started another number of ranks"
    batches = Batches(shards, problem)
    settings = problem.recipe.training
    deepspeed = DeepSpeedSettings(
        {"zero_optimization": {"stage": layout.zero_stage}}, layout.ep_size, layout.zero_stage
    )
    engine = build_engine(starting_model(problem, batches), deepspeed, settings, world, layout.ep_size)
    gradients = FirstGradients(engine)
    share = len(problem.counts) // world.size
    part_of_rank = slice(world.rank * share, (world.rank + 1) * share)
    losses, routing, norm, margin, comm_stats = [], [], 0.0, 1.0, CommStats()
    for step in range(STEPS):
        engine.gradient_norm.wanted = step == 0
        for part in range(problem.accumulation):
            batch = batches.at(step * problem.accumulation + part, part_of_rank)
            with Smooth():
                output, loss = micro_step(engine, batch, weights_of_tokens(batch), settings)
            losses.append(mean_over_ranks(loss.total, world))
            routing.append(leaders_of(output))
            margin = min(margin, margin_of(output)) if step == 0 else margin
            comm_stats += engine.take_traffic()
        gradients.done = True
        if step == 0:
            norm = sum_over_ranks(engine.gradient_norm.share(engine.deepspeed), world) ** 0.5
    facts = Facts(losses, norm, comm_stats.dispatched, comm_stats.routed, replicas_equal(engine))
    write_rank(
        folder,
        world.rank,
        gradients=gradients.pieces.values(),
        weights=weight_pieces(engine),
        routing=routing,
        margin=margin,
        facts=facts,
    )
    engine.deepspeed.destroy()


def mean_over_ranks(value: Tensor, world: World) -> float:
    return sum_over_ranks(value, world) / world.size


def sum_over_ranks(value: Tensor, world: World) -> float:
    total = value.detach().double().clone()
    if world.size > 1:
        dist.all_reduce(total)
    return float(total)


def replicas_equal(engine: Engine) -> bool:
    """Whether every rank holds the very same dense weights and buffers."""
    if engine.world.size == 1:
        return True
    experts = {id(placed.parameter) for placed in engine.parameters() if placed.expert_parallel}
    equal = True
    for tensor in (*engine.model.parameters(), *engine.model.buffers()):
        if id(tensor) not in experts:
            first = tensor.detach().clone()
            dist.broadcast(first, src=0)
            equal = equal and torch.equal(first, tensor.detach())
    return engine.world.all_true(equal)


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
