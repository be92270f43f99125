from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from parity.cases import Problem
from parity.problem import Batches, starting_model, weights_of_tokens

from unimmad.parallel.deepspeed_config import DeepSpeedSettings
from unimmad.parallel.engine import build_engine
from unimmad.parallel.world import World, join_world, leave_world
from unimmad.training.guard import LossGuard
from unimmad.training.micro_step import micro_step
from unimmad.training.run_log import leader_usage

WARM_UP_STEPS = 3


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One for all: DeepSpeed keeps its groups for as long as the process lives."""
    yield join_world()
    leave_world()


@pytest.fixture
def default_mode_afterwards() -> Iterator[None]:
    """Of what PyTorch does where the host waits for the GPU."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_no_step_waits_for_the_gpu(parity_shards, world, default_mode_afterwards, zero_stage):
    problem = Problem("no waiting", overrides=("training.optimizer=adam",))
    batches, settings = Batches(parity_shards, problem), problem.recipe.training
    given = DeepSpeedSettings({"zero_optimization": {"stage": zero_stage}}, 1, zero_stage)
    engine = build_engine(starting_model(problem, batches), given, settings, world, ep_size=1)
    guard = LossGuard(engine)
    for step in range(2 * WARM_UP_STEPS):
        batch = batches.at(step).pin_memory()
        if step == WARM_UP_STEPS:
            torch.cuda.set_sync_debug_mode("error")
        output, loss = micro_step(engine, batch, weights_of_tokens(batch).pin_memory(), 1.0, settings)
        guard.watch(step, loss.total)
        leader_usage(output, problem.recipe.model.leaders)
    torch.cuda.set_sync_debug_mode("default")
    assert guard.first_bad_step() is None
