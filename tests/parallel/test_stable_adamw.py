from __future__ import annotations

import copy

import pytest
import torch
from methods.peer_fixtures import PeerFixture, assert_close

from unimmad.config import TrainingSettings
from unimmad.parallel.optimizer import new_optimizer


def stable_adamw(parameters: list[torch.nn.Parameter], lr: float, weight_decay: float = 1e-4) -> torch.optim.Optimizer:
    """As Dinomaly's authors train with it."""
    training = TrainingSettings(
        optimizer="stable_adamw", learning_rate=lr, weight_decay=weight_decay, adam_epsilon=1e-10
    )
    return new_optimizer(torch.nn.ParameterList(parameters), training)


@pytest.fixture(scope="module")
def fixture() -> PeerFixture:
    return PeerFixture.read("Dinomaly")


@pytest.fixture
def parameters(fixture) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(fixture.tensor(f"opt_param{place}_start").clone()) for place in range(2)]


def take_step(fixture: PeerFixture, step: int, parameters: list[torch.nn.Parameter], optimizer) -> None:
    for place, parameter in enumerate(parameters):
        parameter.grad = fixture.tensor(f"opt_grads{place}")[step].clone()
    optimizer.step()


def assert_as_after_step(fixture: PeerFixture, step: int, parameters: list[torch.nn.Parameter]) -> None:
    for place, parameter in enumerate(parameters):
        assert_close(parameter.detach(), fixture.tensor(f"opt_param{place}_after_each_step")[step], 1e-6)


def test_parameters_are_the_authors_after_each_step(fixture, parameters):
    optimizer = stable_adamw(parameters, lr=2e-3)
    for step in range(5):
        take_step(fixture, step, parameters, optimizer)
        assert_as_after_step(fixture, step, parameters)


def test_it_goes_on_from_its_state(fixture, parameters):
    optimizer = stable_adamw(parameters, lr=2e-3)
    for step in range(3):
        take_step(fixture, step, parameters, optimizer)
    state = copy.deepcopy(optimizer.state_dict())
    assert state["state"][0].keys() == {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
    resumed = stable_adamw(parameters, lr=1.0)
    resumed.load_state_dict(state)
    for step in (3, 4):
        take_step(fixture, step, parameters, resumed)
        assert_as_after_step(fixture, step, parameters)


def test_a_rate_of_0_changes_nothing_but_the_moments(fixture, parameters):
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = stable_adamw(parameters, lr=1.0)
    optimizer.param_groups[0]["lr"] = 0.0
    take_step(fixture, 0, parameters, optimizer)
    assert all(torch.equal(parameter, old) for parameter, old in zip(parameters, before, strict=True))
    assert (optimizer.state[parameters[0]]["exp_avg"] != 0).all()


def test_the_update_after_a_sudden_gradient_is_clipped():
    parameter = torch.nn.Parameter(torch.zeros(4))
    optimizer = stable_adamw([parameter], lr=0.1, weight_decay=0.0)
    for _ in range(50):
        parameter.grad = torch.full((4,), 1e-3)
        optimizer.step()
    before = parameter.detach().clone()
    parameter.grad = torch.full((4,), 100.0)
    optimizer.step()
    # AdamW alone would go seven times as far: its second moment has seen a thousandth of that gradient's square.
    torch.testing.assert_close(before - parameter.detach(), torch.full((4,), 0.1 * 0.1), rtol=1e-2, atol=0.0)
