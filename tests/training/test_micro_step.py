from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from deepspeed.runtime.torch_autocast import has_comm_dtype
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from dtype_watch import DtypeWatch
from host_reads import host_reads
from launches import free_port, run
from parity.cases import Problem
from parity.problem import Batches, Smooth, starting_model, weights_of_tokens
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from unimmad.checkpoint import tensor_slices as pieces
from unimmad.checkpoint.folder import CheckpointFolder
from unimmad.checkpoint.loading import fill_model
from unimmad.checkpoint.tensor_slices import TensorReader
from unimmad.model.unimmad import UniMMAD
from unimmad.parallel.deepspeed_config import DeepSpeedSettings
from unimmad.parallel.engine import Engine, build_engine
from unimmad.parallel.world import World, join_world, leave_world
from unimmad.training.checkpointing import (
    RunFacts,
    portable_piece,
    restore_optimizer,
    save_checkpoint,
    weight_pieces,
)
from unimmad.training.micro_step import LossGuard, micro_step
from unimmad.training.step_totals import leader_usage

WARM_UP_STEPS = 3
aten = torch.ops.aten
WRITING = {
    *(aten.copy_, aten.zero_, aten.fill_, aten._to_copy, aten.clone, aten.cat),
    *(aten.zeros, aten.zeros_like, aten.new_zeros, aten.ones, aten.full, aten.full_like),
}


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


def stage_of(zero_stage: int) -> dict[str, Any]:
    return {"zero_optimization": {"stage": zero_stage}}


def engine_at(zero_stage: int, problem: Problem, batches: Batches, world: World) -> Engine:
    given = DeepSpeedSettings(stage_of(zero_stage), 1, zero_stage)
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
            _, loss = micro_step(engine, batch, weight_of_token_T, settings)
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
                micro_step(engine, batch, weights_of_tokens(batch), settings)
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
        _, loss = micro_step(engine, batches.at(0), weights_of_tokens(batches.at(0)), settings)
        losses.append(loss.total.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), torch.float32),
        (("training.precision=bf16",), torch.bfloat16),
        (("training.precision=bf16", "training.activation_checkpointing=true"), torch.bfloat16),
    ],
    ids=["fp32", "bf16", "bf16, recomputed"],
)
def test_convolutions_and_products_are_in_the_precision_asked_for(
    parity_shards, world, monkeypatch, overrides, expected
):
    """Forward and backward, as on a GPU: DeepSpeed asks for autocast without naming a device, which means CUDA."""
    problem = Problem("precision", counts=(2,), overrides=("training.optimizer=adam", *overrides))
    batches, settings = Batches(parity_shards, problem), problem.recipe.training
    engine = engine_at(1, problem, batches, world)
    of_device = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device="cpu": of_device(device))
    batch = batches.at(0)
    with DtypeWatch() as watch:
        output, loss = micro_step(engine, batch, weights_of_tokens(batch), settings)
    dtypes = {name: set(counts) for name, counts in watch.seen.items()}
    assert dtypes["convolution"] == dtypes["convolution_backward"] == dtypes["bmm"] == {expected}
    assert dtypes["addmm"] == {torch.float32}, "gates decide in fp32"
    assert {distance.dtype for distance in output.distances} | {loss.total.dtype} == {torch.float32}
    assert engine.deepspeed.communication_data_type == torch.float32
    assert not any(has_comm_dtype(parameter) for parameter in engine.model.parameters())


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_a_resume_reads_and_writes_each_byte_once_and_goes_on_alike(
    parity_shards, world, tmp_path, monkeypatch, zero_stage
):
    problem = Problem("resume", overrides=("training.optimizer=adam",))
    batches, settings = Batches(parity_shards, problem), problem.recipe.training

    def step(engine: Engine, number: int) -> None:
        batch = batches.at(number)
        micro_step(engine, batch, weights_of_tokens(batch), settings)

    saved = engine_at(zero_stage, problem, batches, world)
    step(saved, 0)
    facts = RunFacts(problem.recipe, "none", [], zero_stage)
    checkpoint = save_checkpoint(CheckpointFolder(tmp_path), saved, facts, 1, finished=False)
    model = UniMMAD(problem.recipe.model)
    opened: Counter[str] = Counter()
    real_open = pieces.safe_open

    def counting_open(path: Path, framework: str) -> Any:
        opened[path.name] += 1
        return real_open(path, framework=framework)

    monkeypatch.setattr(pieces, "safe_open", counting_open)
    with Written() as weights:
        fill_model(model, TensorReader(checkpoint))
    assert weights.bytes == sum(tensor.nbytes for tensor in model.state_dict().values())
    engine = build_engine(model, DeepSpeedSettings(stage_of(zero_stage), 1, zero_stage), settings, world, ep_size=1)
    with Written() as state:
        restore_optimizer(engine, checkpoint, 1)
    restored, before = engine.torch_optimizer.state, saved.torch_optimizer.state
    assert state.bytes == sum(of_key["exp_avg"].nbytes + of_key["exp_avg_sq"].nbytes for of_key in restored.values())
    assert opened == {"model-00000.safetensors": 1, "optimizer-00000.safetensors": 1}
    for ours, theirs in zip(restored.values(), before.values(), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    for one in (saved, engine):
        step(one, 1)
    ends = [{piece.name: piece.values for piece in weight_pieces(one)} for one in (saved, engine)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


class Written(TorchDispatchMode):
    """Counts the bytes that operations write; making room writes none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in WRITING:
            self.bytes += result.nbytes
        return result


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_where_state_lies_is_what_deepspeeds_public_functions_say(parity_shards, world, zero_stage):
    """As far as they go: they know the state of the first group of parameters alone, of which experts are another."""
    problem = Problem("fragments", overrides=("training.optimizer=adam",))
    batches, settings = Batches(parity_shards, problem), problem.recipe.training
    engine = engine_at(zero_stage, problem, batches, world)
    parameters = {placed.name: placed.parameter for placed in engine.parameters()}
    batch = batches.at(0)
    micro_step(engine, batch, weights_of_tokens(batch), settings)
    broken = "DeepSpeed keeps ZeRO's partitions otherwise (parallel/private_deepspeed.py): checkpoints would be wrong"
    (first_partition,) = engine.torch_optimizer.param_groups[0]["params"]
    found = []
    for piece in engine.optimizer_pieces():
        weight = safe_get_full_fp32_param(parameters[piece.name])
        assert torch.equal(portable_piece(piece.name, piece, piece.key).values, weight), broken
        if piece.key is first_partition:
            moment = safe_get_full_optimizer_state(parameters[piece.name], "exp_avg")
            state = engine.optimizer_state(piece.key)["exp_avg"]
            assert torch.equal(portable_piece(piece.name, piece, state).values, moment), broken
            found.append(piece.name)
    assert found, broken


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
        output, loss = micro_step(engine, batch, weights_of_tokens(batch).pin_memory(), settings)
        guard.watch(step, loss.total)
        leader_usage(output, problem.recipe.model.leaders)
    torch.cuda.set_sync_debug_mode("default")
    assert guard.first_bad_step() is None
