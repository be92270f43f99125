from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from host_reads import host_reads
from launches import free_port, run
from parity.cases import Problem
from parity.problem import Batches, Smooth, starting_model, weights_of_tokens
from torch import nn

from unimmad.parallel.deepspeed_config import DeepSpeedSettings
from unimmad.parallel.engine import Engine, build_engine
from unimmad.parallel.world import World, join_world, leave_world
from unimmad.training.checkpointing import weight_pieces
from unimmad.training.guard import LossGuard
from unimmad.training.micro_step import micro_step
from unimmad.training.step_totals import leader_usage

WARM_UP_STEPS = 3


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """One for all: DeepSpeed keeps its groups for as long as the process lives."""
    with patch.dict(os.environ):  # where other tests' launches would find this rank's place
        yield join_world()
        leave_world()


@pytest.fixture
def default_mode_afterwards() -> Iterator[None]:
    """Of what PyTorch does where the host waits for the GPU."""
    yield
    torch.cuda.set_sync_debug_mode("default")


def engine_at(zero_stage: int, problem: Problem, batches: Batches, world: World) -> Engine:
    given = DeepSpeedSettings({"zero_optimization": {"stage": zero_stage}}, 1, zero_stage)
    model = starting_model(problem, batches)
    return build_engine(model, given, problem.recipe.training, world, ep_size=1)


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_no_step_reads_a_value_back_to_the_host(parity_shards, world, zero_stage):
    """On a processor: a GPU would be waited for where one is read. (one_hot, as logging uses it, reads here only.)"""
    problem = Problem("no reading", overrides=("training.optimizer=adam",))
    batches, settings = Batches(parity_shards, problem), problem.recipe.training
    engine = engine_at(zero_stage, problem, batches, world)
    guard = LossGuard(engine)
    for step in range(WARM_UP_STEPS):
        batch = batches.at(step)
        weight_of_token_T = weights_of_tokens(batch)
        engine.gradient_norm.wanted = step > 0  # as in a step that is logged
        with host_reads() as reads:
            _, loss = micro_step(engine, batch, weight_of_token_T, 1.0, settings)
            guard.watch(step, loss.total)
        assert reads == []
    assert engine.gradient_norm.share(engine.deepspeed) > 0
    assert guard.first_bad_step() is None


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_channels_last_trains_to_the_same_weights_and_the_teachers_own_stay(parity_shards, world, zero_stage):
    ends = []
    for overrides in ((), ("training.channels_last=true",)):
        problem = Problem("layout", overrides=overrides)
        batches, settings = Batches(parity_shards, problem), problem.recipe.training
        engine = engine_at(zero_stage, problem, batches, world)
        start = starting_model(problem, batches).state_dict()
        for step in range(2):
            batch = batches.at(step)
            with Smooth():
                micro_step(engine, batch, weights_of_tokens(batch), 1.0, settings)
        pieces = {piece.name: piece.values.clone() for piece in weight_pieces(engine)}
        assert pieces.keys() == start.keys()
        assert all(torch.equal(pieces[name], start[name]) for name in start if name.startswith("teacher."))
        assert engine.model.folded_teacher is not None
        ends.append(pieces)
        assert engine.model.memory_format is (torch.channels_last if overrides else torch.contiguous_format)
    plain, changed = ends
    moved = [name for name in start if name.startswith("encoder.") and not torch.equal(plain[name], start[name])]
    assert moved
    for name, value in changed.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=1e-5)


def test_what_is_compiled_is_what_a_step_runs(parity_shards, world, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    losses = []
    for overrides in ((), ("training.compile=true",)):
        problem = Problem("compiled", overrides=overrides)
        batches, settings = Batches(parity_shards, problem), problem.recipe.training
        engine = engine_at(0, problem, batches, world)
        model = engine.model
        networks = model.folded_teacher.network, model.input_embedding, model.encoder, model.compression
        assert [network._compiled_call_impl is not None for network in networks] == [bool(overrides)] * 4
        _, loss = micro_step(engine, batches.at(0), weights_of_tokens(batches.at(0)), 1.0, settings)
        losses.append(loss.total.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_where_leaders_live_on_other_ranks_a_step_fetches_once(parity_shards, tmp_path):
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--master_port", str(free_port())]
    worker = Path(__file__).with_name("reads_worker.py")
    done = run([*launcher, "--num_accelerators", "2", str(worker), str(parity_shards), str(tmp_path)], tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [[["cpu"]] * 2] * 3  # steps, ZeRO stages


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
        np.asarray,
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: bool((x > 0).all()),
        lambda x: x.masked_select(x > 0),
        lambda x: x.__setitem__(x > 0, torch.zeros(1)),
        lambda x: torch.repeat_interleave(x, torch.tensor([1, 2, 3])),
    ],
)
def test_a_value_that_is_read_back_is_noticed(read):
    with host_reads() as reads:
        read(torch.tensor([-1.0, 0.5, 2.0]))
    assert reads


@pytest.mark.parametrize("method", ["cpu", "numpy", "tolist", "item"])
def test_a_value_that_a_backward_pass_reads_is_noticed(method):
    class Reading(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x * 2

        @staticmethod
        def backward(context, gradient):
            getattr(gradient, method)()
            return gradient * 2

    x = torch.ones(1, requires_grad=True)
    with host_reads() as reads:
        Reading.apply(x).sum().backward()
    assert reads


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_no_step_waits_for_the_gpu(parity_shards, world, default_mode_afterwards, zero_stage):
    problem = Problem("no waiting", overrides=("training.optimizer=adam",))
    batches, settings = Batches(parity_shards, problem), problem.recipe.training
    engine = engine_at(zero_stage, problem, batches, world)
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
