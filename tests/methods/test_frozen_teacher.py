from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from unimmad.config import TrainingSettings, parse_recipe
from unimmad.methods.frozen_teacher import FrozenTeacherMethod
from unimmad.methods.rd import RD, RDSettings
from unimmad.methods.registry import METHOD_SETTINGS, build_method
from unimmad.methods.uniad import UniAD, UniADSettings
from unimmad.model.method import StepFacts

SIZE = 128
SLOTS = torch.tensor([0, 1, 0])

KINDS = {
    "rd": lambda: RD(RDSettings(image_size=SIZE, backbone="resnet18", backbone_weights="none")),
    "uniad": lambda: UniAD(
        UniADSettings(image_size=SIZE, backbone="resnet18", backbone_weights="none", hidden_dim=32, dropout=0)
    ),
}


@pytest.fixture(params=KINDS)
def method(request) -> FrozenTeacherMethod:
    torch.manual_seed(0)
    made = KINDS[request.param]()
    made.calibrate_backbone([images()])
    return made


def images() -> torch.Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def maps_of(method: FrozenTeacherMethod) -> torch.Tensor:
    with torch.no_grad():
        return method.maps(method(images(), [2, 1], SLOTS))


def assert_same(ours: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (ours - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_a_backbone_without_weights_gets_statistics_of_its_own(method):
    norm = next(module for module in method.teacher.modules() if isinstance(module, nn.BatchNorm2d))
    assert not torch.equal(norm.running_var, torch.ones_like(norm.running_var))
    assert not norm.training


def test_a_frozen_teacher_gives_the_same_losses_and_gradients(method):
    plain = copy.deepcopy(method)
    method.freeze_teacher()
    assert method.folded_teacher.network in method.networks()
    assert method.teacher not in method.networks()
    facts = StepFacts(torch.ones(3), TrainingSettings())
    of_both = []
    for one in (method, plain):
        torch.manual_seed(2)
        loss = one.loss(one(images(), [2, 1], SLOTS), facts).total
        loss.backward()
        gradients = [weight.grad for weight in one.parameters() if weight.grad is not None]
        of_both.append((loss.detach(), nn.utils.get_total_norm(gradients)))
    torch.testing.assert_close(*of_both, rtol=1e-4, atol=0)


def test_the_inference_form_gives_the_same_maps_and_holds_no_gradients(method):
    wanted_BHW = maps_of(method.eval())
    fast = copy.deepcopy(method).inference_form(0)
    assert_same(maps_of(fast), wanted_BHW)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    assert not any(weight.requires_grad for weight in fast.parameters())
    assert not fast.training


def test_the_form_that_is_traced_gives_the_same_maps(method):
    wanted_BHW = maps_of(method.eval())[:1]
    traced = torch.export.export(method.with_fixed_modalities([0, 1]), (images()[None, :2],)).module()
    with torch.no_grad():
        assert_same(traced(images()[None, :2]), wanted_BHW)


@pytest.mark.parametrize(("name", "kind"), [("rd", RD), ("uniad", UniAD)])
def test_a_recipe_may_name_it(name, kind):
    model = {"backbone": "resnet18", "image_size": SIZE}
    recipe = parse_recipe({"name": "mine", "method": name, "model": model}, "here", METHOD_SETTINGS)
    assert isinstance(build_method(recipe), kind)
