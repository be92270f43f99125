"""The optimizer that a recipe names: which, over what, with what decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unimmad.config import TrainingSettings, load_recipe
from unimmad.methods.registry import METHOD_SETTINGS, build_method, new_model
from unimmad.model.growing import train_experts_alone
from unimmad.parallel.deepspeed_config import (
    DeepSpeedSettings,
    default_deepspeed_config,
    engine_config,
    read_deepspeed_config,
)
from unimmad.parallel.optimizer import new_optimizer

RD = load_recipe(
    "rd", ["model.image_size=64", "model.backbone=resnet18", "model.backbone_weights=none"], METHOD_SETTINGS
)


def training(**changes: object) -> TrainingSettings:
    return TrainingSettings.model_validate({"learning_rate": 0.5, **changes})


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", "Adam"), ("adamw", "AdamW"), ("stable_adamw", "AdamWLegacy"), ("sgd", "SGD")],
)
def test_each_is_what_its_name_says_over_all_that_is_trained(name, kind):
    method = build_method(RD)
    optimizer = new_optimizer(method, training(optimizer=name, betas=[0.5, 0.9], adam_epsilon=1e-5))
    assert type(optimizer).__name__ == kind
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in method.parameters() if parameter.requires_grad}
    assert not held & {id(parameter) for parameter in method.get_submodule("teacher").parameters()}
    for group in optimizer.param_groups:
        assert group["lr"] == 0.5
        if name != "sgd":
            assert (tuple(group["betas"]), group["eps"]) == ((0.5, 0.9), 1e-5)


@pytest.mark.parametrize("decay_vectors", [True, False])
def test_weight_decay_may_leave_biases_and_scales_out(decay_vectors):
    method = build_method(RD)
    optimizer = new_optimizer(method, training(optimizer="adamw", weight_decay=0.1, decay_vectors=decay_vectors))
    before = {name: parameter.detach().clone() for name, parameter in method.named_parameters()}
    for parameter in method.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in method.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 or decay_vectors
        torch.testing.assert_close(parameter.detach(), before[name] * (0.95 if decayed else 1.0))


def test_experts_stay_in_groups_of_their_own_where_vectors_do_not_decay():
    method = build_method(load_recipe("tiny"))
    expert = next(parameter for parameter in method.get_submodule("levels").parameters() if parameter.ndim > 1)
    expert.allreduce, expert.group_name = False, "ep_size_2"
    optimizer = new_optimizer(method, training(optimizer="adamw", weight_decay=0.1, decay_vectors=False))
    (group,) = [group for group in optimizer.param_groups if any(parameter is expert for parameter in group["params"])]
    assert group["moe"]
    assert len(group["params"]) == 1


def test_one_that_takes_a_mean_over_tensors_goes_without_zero():
    stable = training(optimizer="stable_adamw", global_batch=4)
    assert default_deepspeed_config(stable).stem == "zero0"
    assert default_deepspeed_config(training()).stem == "ep1"
    settings = read_deepspeed_config(default_deepspeed_config(stable))
    assert settings.zero_stage == 0
    assert engine_config(settings, stable, world_size=1)["train_batch_size"] == 4
    with pytest.raises(ValueError, match=r"stable_adamw takes a mean over each tensor.*ZeRO 1.*zero0"):
        engine_config(DeepSpeedSettings({}, 1, 1), stable, world_size=1)


def test_weight_decay_of_an_optimizer_without_it_is_refused():
    with pytest.raises(ValueError, match=r"weight_decay 0\.1 is for optimizer adamw or stable_adamw"):
        training(weight_decay=0.1)


def test_a_method_without_experts_has_an_ep_size_of_1():
    from unimmad.parallel.placement import effective_ep_size, place_leaders

    assert effective_ep_size(4, 8, RD.model) == 1
    method = build_method(RD)
    place_leaders(method, 1, 0)
    assert isinstance(method, nn.Module)
    assert method.on_routed is None


@pytest.mark.parametrize("name", ["adamw", "stable_adamw"])
@pytest.mark.parametrize("decay_vectors", [True, False])
def test_weight_decay_leaves_banks_as_they_are_beside_those_that_come_in(name, decay_vectors):
    method, _ = new_model(load_recipe("tiny", ["model.banks=2"]))
    train_experts_alone(method, new_banks=[1])
    settings = training(optimizer=name, weight_decay=0.1, decay_vectors=decay_vectors)
    optimizer = new_optimizer(method, settings)
    before = {key: parameter.detach().clone() for key, parameter in method.named_parameters()}
    for parameter in method.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {key for key, parameter in method.named_parameters() if not torch.equal(parameter, before[key])}
    assert moved
    assert all(".routed." in key for key in moved)
