from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from unimmad.config import load_recipe
from unimmad.methods.registry import new_model
from unimmad.model.backbone import Backbone
from unimmad.model.folding import FoldedTeacher
from unimmad.model.inference import for_inference
from unimmad.model.loss import unimmad_loss
from unimmad.model.unimmad import UniMMAD

COUNTS = (1, 3)
SLOTS = (0, 0, 1, 2)


@pytest.fixture
def model() -> UniMMAD:
    made, _ = new_model(load_recipe("tiny"), seed=0)
    made.calibrate_backbone([images()])
    return made


def images() -> torch.Tensor:
    return torch.randn(sum(COUNTS), 3, 64, 64, generator=torch.Generator().manual_seed(3))


def loss_of(model: UniMMAD) -> torch.Tensor:
    output = model(images(), COUNTS, torch.tensor(SLOTS))
    return unimmad_loss(output, torch.ones(sum(COUNTS)), 1.0, focal_gamma=2.0).total


def gradients(model: UniMMAD) -> dict[str, torch.Tensor]:
    loss_of(model).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def test_its_maps_are_the_teachers_and_no_batchnorm_is_left(model):
    folded = FoldedTeacher(model.teacher)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.network.modules())
    with torch.no_grad():
        for ours, plain in zip(folded(images()), model.teacher(images()), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_a_network_that_is_not_traced_gives_its_maps_all_the_same():
    plain = Backbone("resnet18")
    plain.eval().network.conv1.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        for ours, wanted in zip(FoldedTeacher(plain)(images()), plain(images()), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


def test_the_model_keeps_its_own_teacher(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = [name for name, _ in model.named_parameters()]
    model.freeze_teacher()
    assert [name for name, _ in model.named_parameters()] == parameters
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_step_has_the_same_loss_and_gradients(model):
    folding = copy.deepcopy(model)
    folding.freeze_teacher()
    seen = []
    folding.folded_teacher.network.register_forward_hook(lambda *_: seen.append(torch.is_inference_mode_enabled()))
    assert loss_of(folding).item() == pytest.approx(loss_of(model).item(), rel=1e-5)
    ours, wanted = gradients(folding), gradients(model)
    assert seen == [True, True]
    assert ours.keys() == wanted.keys()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name, gradient in ours.items():
        assert torch.allclose(gradient, wanted[name], rtol=1e-3, atol=1e-4 * largest), name


def test_the_unfolded_teacher_runs_in_inference_mode_too(model):
    seen = []
    model.teacher.register_forward_hook(lambda *_: seen.append(torch.is_inference_mode_enabled()))
    loss_of(model).backward()
    assert seen == [True]


def test_the_inference_form_folds_the_teacher_itself_and_drops_the_copy(model):
    expected = model.eval()(images(), COUNTS, torch.tensor(SLOTS))
    model.freeze_teacher()
    fast = for_inference(model)
    assert fast.folded_teacher is None
    with torch.no_grad():
        found = fast(images(), COUNTS, torch.tensor(SLOTS))
    for ours, wanted in zip(found.distances, expected.distances, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
