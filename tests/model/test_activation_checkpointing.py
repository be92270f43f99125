from __future__ import annotations

import copy

import pytest
import torch

from unimmad.config import load_recipe
from unimmad.methods.registry import new_model
from unimmad.model.backends.activation_checkpointing import recompute_activations
from unimmad.model.unimmad import UniMMAD

COUNTS = (1, 3)


@pytest.fixture(scope="module")
def model() -> UniMMAD:
    made, _ = new_model(load_recipe("tiny"), seed=0)
    return made


@pytest.mark.parametrize("backbone", ["resnet18d", "hrnet_w18_small"])
def test_backbones_that_work_in_place_have_the_same_gradients(backbone):
    plain, _ = new_model(load_recipe("tiny", [f"model.backbone={backbone}"]), seed=0)
    recomputing = copy.deepcopy(plain)
    recompute_activations(recomputing)
    for form in (plain, recomputing):
        kept_bytes(form)
    ours = dict(recomputing.named_parameters())
    for name, parameter in plain.named_parameters():
        assert parameter.grad is None or torch.equal(ours[name].grad, parameter.grad), name


def kept_bytes(model: UniMMAD) -> int:
    """What a training step keeps between forward and backward; does the step."""
    size = model.settings.image_size
    images = torch.randn(sum(COUNTS), 3, size, size, generator=torch.Generator().manual_seed(1))
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images, COUNTS, torch.tensor([0, 0, 1, 2]))
        loss = sum(distance.square().mean() for distance in output.distances)
    loss.backward()
    return sum(kept.values())


def test_a_step_keeps_less_and_is_the_same_bit_for_bit(model):
    plain, recomputing = copy.deepcopy(model), copy.deepcopy(model)
    blocks = recompute_activations(recomputing)
    assert blocks > 20
    assert kept_bytes(recomputing) < 0.5 * kept_bytes(plain)
    for name, parameter in plain.named_parameters():
        ours = dict(recomputing.named_parameters())[name]
        assert (parameter.grad is None) == (ours.grad is None), name
        assert parameter.grad is None or torch.equal(ours.grad, parameter.grad), name
    statistics = dict(recomputing.named_buffers())
    for name, buffer in plain.named_buffers():
        assert torch.equal(statistics[name], buffer), name


def test_evaluation_is_untouched(model):
    plain, recomputing = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    recompute_activations(recomputing)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    size = plain.settings.image_size
    images = torch.nn.functional.interpolate(images, size=(size, size))
    with torch.no_grad():
        ours, theirs = (form(images, (2,), torch.tensor([0, 1])) for form in (recomputing, plain))
    assert all(torch.equal(a, b) for a, b in zip(ours.distances, theirs.distances, strict=True))
