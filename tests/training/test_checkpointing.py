"""Optimizer state that is restored lies where its optimizer wants it. (Real engines: test_micro_step.py.)"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from unimmad.checkpoint.tensor_slices import INDEX_NAME, TensorSlice, build_index, write_pieces
from unimmad.parallel import engine as engine_module
from unimmad.parallel.engine import Engine
from unimmad.parallel.gradient_norm import GradientNorm
from unimmad.parallel.private_deepspeed import Fragment
from unimmad.parallel.world import World
from unimmad.training.checkpointing import restore_optimizer
from unimmad.training.micro_step import LossGuard

STEP = 7
SHAPES = {"first": (4, 3), "second": (5,)}
PADDING = 3
MOMENTS = {
    key: {name: torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for name, shape in SHAPES.items()}
    for seed, key in enumerate(("exp_avg", "exp_avg_sq"))
}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    pieces = [
        TensorSlice(f"optimizer/{key}/{name}", tuple(value.shape), 0, value)
        for key, values in MOMENTS.items()
        for name, value in values.items()
    ]
    write_pieces(tmp_path / "optimizer-00000.safetensors", pieces)
    (tmp_path / INDEX_NAME).write_text(json.dumps(build_index(tmp_path)))
    return tmp_path


def engine_on(device: str, **of_adam: Any) -> Engine:
    """As without ZeRO."""
    model = nn.Module()
    for name, shape in SHAPES.items():
        model.register_parameter(name, nn.Parameter(torch.zeros(shape, device=device)))
    optimizer = torch.optim.Adam(model.parameters(), **of_adam)
    return engine_of(model, optimizer, zero=False)


def engine_of(model: nn.Module, optimizer: torch.optim.Optimizer, zero: bool) -> Engine:
    deepspeed = SimpleNamespace(optimizer=optimizer, zero_optimization=lambda: zero)
    world = World(0, 1, 0, torch.device("cpu"))
    return Engine(deepspeed, cast(Any, model), world, 1, GradientNorm(optimizer, world, 1, int(zero), clipped=False))


def partitioned_engine_on(device: str, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """As with ZeRO: one flat partition with what fits of each parameter, here the last 5 and the first 4 elements."""
    engine = engine_on("cpu")
    partition = torch.zeros(9 + PADDING, device=device)
    optimizer = torch.optim.Adam([partition], fused=True)
    first, second = engine.model.parameters()
    parts = {id(first): Fragment(partition, 0, 7, 5), id(second): Fragment(partition, 5, 0, 4)}
    monkeypatch.setattr(engine_module, "zero_fragment", lambda _, parameter: parts[id(parameter)])
    return engine_of(engine.model, optimizer, zero=True)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("of_adam", "step_beside"),
    [({"fused": True}, True), ({"capturable": True}, True), ({}, False)],
    ids=["fused", "capturable", "plain"],
)
def test_state_lies_beside_its_parameter_in_its_type_and_the_step_where_adam_wants_it(
    checkpoint, device, of_adam, step_beside
):
    engine = engine_on(device, **of_adam)
    restore_optimizer(engine, checkpoint, STEP)
    for name, parameter in engine.model.named_parameters():
        state = engine.optimizer_state(parameter)
        assert state.keys() == {"step", *MOMENTS}
        assert (state["step"].device.type, state["step"].dtype) == (device if step_beside else "cpu", torch.float32)
        for key in MOMENTS:
            assert (state[key].device.type, state[key].dtype) == (device, parameter.dtype)
            assert state[key].shape == parameter.shape
            assert device == "meta" or torch.equal(state[key], MOMENTS[key][name])
        assert state["step"].is_meta or float(state["step"]) == STEP


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_state_of_a_partition_lies_beside_it(checkpoint, device, monkeypatch):
    engine = partitioned_engine_on(device, monkeypatch)
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, torch.nan))
    restore_optimizer(engine, checkpoint, STEP)
    ((_, state),) = engine.torch_optimizer.state.items()
    assert {value.device.type for value in state.values()} == {device}
    assert {value.dtype for value in state.values()} == {torch.float32}
    for key, of_name in MOMENTS.items():
        expected = torch.cat([of_name["first"].flatten()[7:], of_name["second"][:4], torch.zeros(PADDING)])
        assert state[key].shape == expected.shape
        assert device == "meta" or torch.equal(state[key], expected), "what nothing is read for is zero"


def test_groups_keep_what_they_are(checkpoint):
    """DeepSpeed's, such as the experts', say more than torch's."""
    engine = engine_on("cpu", fused=True)
    (group,) = engine.torch_optimizer.param_groups
    group |= {"name": "dense", "moe": False, "lr": 0.25}
    restore_optimizer(engine, checkpoint, STEP)
    (after,) = engine.torch_optimizer.param_groups
    assert after == group
    assert [id(parameter) for parameter in after["params"]] == [id(parameter) for parameter in group["params"]]


def test_state_that_is_not_finite_is_refused_by_name(checkpoint):
    broken = MOMENTS["exp_avg"]["first"].clone()
    broken[1, 2] = torch.nan
    pieces = [
        TensorSlice(f"optimizer/{key}/{name}", tuple(value.shape), 0, value)
        for key, values in (MOMENTS | {"exp_avg": MOMENTS["exp_avg"] | {"first": broken}}).items()
        for name, value in values.items()
    ]
    write_pieces(checkpoint / "optimizer-00000.safetensors", pieces)
    with pytest.raises(ValueError, match=r"optimizer/exp_avg/first holds values that are NaN or infinite"):
        restore_optimizer(engine_on("cpu"), checkpoint, STEP)


@pytest.mark.parametrize("part", ["weight", "running statistic", "optimizer state"])
def test_no_checkpoint_is_made_of_what_could_not_be_loaded(checkpoint, part):
    engine = engine_on("cpu")
    engine.model.register_buffer("running_var", torch.ones(3))
    engine.model.register_buffer("num_batches_tracked", torch.tensor(3))
    restore_optimizer(engine, checkpoint, STEP)
    guard = LossGuard(engine)
    assert guard.weights_are_finite()
    first = next(engine.model.parameters())
    tensors = {
        "weight": first.data,
        "running statistic": engine.model.get_buffer("running_var"),
        "optimizer state": engine.optimizer_state(first)["exp_avg_sq"],
    }
    tensors[part].view(-1)[1] = torch.inf
    assert not guard.weights_are_finite()
