"""The reference is checked like the model itself: against the model, and against the released implementation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model.test_official_fixtures import Official, assert_close_to_largest, official  # noqa: F401

from benchmarks.reference import LAST_STRIDE, ReferenceUniMMAD
from unimmad.config import load_recipe
from unimmad.model.loss import unimmad_loss
from unimmad.model.unimmad import UniMMAD

COUNTS = (2, 1, 3)
SLOTS = torch.tensor([0, 1, 2, 0, 1, 3])


def tiny_model(banks: int = 1) -> UniMMAD:
    # At the paper's value leaders are almost equal, and a wrong route would not show.
    settings = load_recipe("tiny", [f"model.banks={banks}", "model.initial_leader_std=2.0"]).model
    torch.manual_seed(3)
    return UniMMAD(settings)


def images() -> torch.Tensor:
    return torch.randn(len(SLOTS), 3, 64, 64, generator=torch.Generator().manual_seed(4))


def gradients(network: torch.nn.Module, model: UniMMAD) -> dict[str, torch.Tensor]:
    """Of the loss, by the names of ``model``'s parameters."""
    model.zero_grad()
    output = network(images(), COUNTS, SLOTS)
    unimmad_loss(output, torch.ones(len(SLOTS)), balance_scale=1.0, focal_gamma=2.0).total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("banks", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_it_computes_what_the_model_computes(training, banks):
    model = tiny_model(banks).train(training)
    reference = ReferenceUniMMAD(model)
    with torch.no_grad():
        ours, theirs = (network(images(), COUNTS, SLOTS) for network in (model, reference))
        torch.testing.assert_close(reference.maps(theirs), model.maps(ours), rtol=1e-4, atol=1e-5)
    for our, their in zip(ours.distances, theirs.distances, strict=True):
        torch.testing.assert_close(their, our, rtol=1e-4, atol=1e-5)
    for our, their in zip(sum(ours.routings, ()), sum(theirs.routings, ()), strict=True):
        assert torch.equal(their.leaders_TK, our.leaders_TK)
        torch.testing.assert_close(their.scores_TK, our.scores_TK)


def test_its_gradients_are_the_models():
    model = tiny_model().eval()
    reference = ReferenceUniMMAD(model)
    ours, theirs = gradients(model, model), gradients(reference, model)
    floor = 1e-6 * max(gradient.norm() for gradient in ours.values())
    for name, gradient in ours.items():
        assert (theirs[name] - gradient).norm() <= 1e-3 * gradient.norm() + floor, name


def test_it_shares_the_models_parameters_and_adds_only_the_last_stage_of_each_backbone():
    model = tiny_model()
    own = {id(parameter) for parameter in model.parameters()}
    added = [name for name, parameter in ReferenceUniMMAD(model).named_parameters() if id(parameter) not in own]
    shared = {id(parameter) for parameter in ReferenceUniMMAD(model).parameters()} & own
    assert shared == own
    assert {name.split(".layer4.")[0] for name in added} == {"teacher.network", "encoder.network"}


def test_the_last_stage_is_computed():
    reference = ReferenceUniMMAD(tiny_model()).eval()
    seen = []
    reference.teacher.network["layer4"].register_forward_hook(lambda *arguments: seen.append(arguments[-1].shape))
    with torch.no_grad():
        maps = reference.teacher(images())
    assert [64 // features.shape[-1] for features in maps] == [4, 8, 16]
    assert seen == [(6, 512, 64 // LAST_STRIDE, 64 // LAST_STRIDE)]


def test_a_frozen_encoder_stays_frozen():
    settings = load_recipe("tiny", ["model.encoder_batchnorm=frozen"]).model
    reference = ReferenceUniMMAD(UniMMAD(settings)).train()
    layers = [module for module in reference.encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert layers
    assert not any(layer.training for layer in layers)


@pytest.mark.long
def test_it_computes_what_the_released_implementation_computes(official: Official):  # noqa: F811
    official = replace(official, model=ReferenceUniMMAD(official.model).eval())
    with torch.no_grad():
        output = official.forward()
        loss = official.loss(output)
    for level, distance_Thw in enumerate(output.distances, start=1):
        assert_close_to_largest(distance_Thw, official.outputs[f"eval_cosdist_level{level}"])
    assert_close_to_largest(official.model.maps(output), official.outputs["eval_anomaly_map"])
    assert loss.parts["balance"].item() == pytest.approx(float(official.outputs["eval_lb_loss"]), rel=1e-4)
    official.model.train()
    loss = official.loss(official.forward())
    assert loss.total.item() == pytest.approx(float(official.outputs["train_loss"]), rel=1e-4)
