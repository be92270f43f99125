"""The whole network at its smallest: how the parts are joined."""

from __future__ import annotations

import naive_moe as naive
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from unimmad.config import load_recipe
from unimmad.methods.registry import new_model
from unimmad.model import backbone
from unimmad.model.unimmad import UniMMAD

RECIPE = load_recipe("tiny")
COUNTS = (1, 3, 2)
SLOTS = (1, 0, 1, 3, 0, 2)


@pytest.fixture(scope="module")
def model() -> UniMMAD:
    built, _ = new_model(RECIPE, seed=0)
    return built.eval()


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(7))


def run(model, images_TCHW, counts=COUNTS, slots=SLOTS):
    return model(images_TCHW, counts, torch.tensor(slots))


def test_distances_are_between_each_tokens_teacher_features_and_its_reconstruction(model):
    images_TCHW = images()
    with torch.no_grad():
        output = run(model, images_TCHW)
        sample_T = torch.tensor([0, 1, 1, 1, 2, 2])
        embedded = model.input_embedding(images_TCHW, sample_T, torch.tensor(SLOTS), 3)
        shared = model.compression(model.encoder(embedded))
        teacher = [torch.cat([model.teacher(image[None])[level] for image in images_TCHW]) for level in range(3)]
    assert output.sample_of_token_T.tolist() == sample_T.tolist()
    for level, distance in enumerate(output.distances):
        target = naive.array(F.normalize(teacher[level], dim=1))
        given = naive.array(F.normalize(shared[level], dim=1))
        reconstruction = naive.cross_moe(model.levels[level], given, target, COUNTS)
        lengths = np.linalg.norm(target, axis=1) * np.linalg.norm(reconstruction, axis=1)
        expected = 1 - (target * reconstruction).sum(axis=1) / np.maximum(lengths, 1e-8)
        np.testing.assert_allclose(distance, expected, rtol=1e-3, atol=1e-4)


def test_a_sample_alone_has_the_maps_it_has_in_a_batch(model):
    images_TCHW = images()
    with torch.no_grad():
        together = model.maps(run(model, images_TCHW))
        alone = [
            model.maps(run(model, images_TCHW[:1], (1,), SLOTS[:1])),
            model.maps(run(model, images_TCHW[1:4], (3,), SLOTS[1:4])),
            model.maps(run(model, images_TCHW[4:], (2,), SLOTS[4:])),
        ]
    assert together.shape == (3, 64, 64)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_gradients_reach_everything_but_the_teacher_and_the_leaders_not_routed():
    model, _ = new_model(RECIPE, seed=1)
    naive.randomise(model, seed=5)  # a new ResNet's residual branches are multiplied by zero
    output = run(model, images())
    sum(distance.pow(2).sum() for distance in output.distances).backward()
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    ]
    assert without == []
    for level, routings in zip(model.levels, output.routings, strict=True):
        for branch, routing in zip(level.branches, routings, strict=True):
            trained_L = branch.routed.leaders.logits_LNE.grad.flatten(1).abs().sum(dim=1) > 0
            assert set(trained_L.nonzero().flatten().tolist()) == set(routing.leaders_TK.flatten().tolist())


def test_training_leaves_the_teachers_statistics_alone():
    model, _ = new_model(RECIPE, seed=1)
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    mean_before = model.encoder.network.bn1.running_mean.clone()
    run(model.train(), images())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.teacher.state_dict().items())
    assert not torch.equal(model.encoder.network.bn1.running_mean, mean_before)


def test_a_new_model_is_the_same_for_the_same_seed_and_starts_its_encoder_as_the_teacher():
    torch.manual_seed(0)
    backbone._stages.cache_clear()  # the first model of a process asks timm for more than the second
    first, said = new_model(RECIPE, seed=3)
    torch.rand(5)
    again, _ = new_model(RECIPE, seed=3)
    other, _ = new_model(RECIPE, seed=4)
    assert "none" in said
    pairs = [(tensor, again.state_dict()[name]) for name, tensor in first.state_dict().items()]
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.input_embedding.embedding_CHW, other.input_embedding.embedding_CHW)
    teacher = first.teacher.state_dict()
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in first.encoder.state_dict().items())


def test_building_a_model_leaves_the_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    new_model(RECIPE, seed=3)
    assert torch.equal(torch.rand(1), expected)


def test_autocast_keeps_distances_and_gates_in_float32(model):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = run(model, images())
    assert {distance.dtype for distance in output.distances} == {torch.float32}
    assert {routing.logits_TL.dtype for level in output.routings for routing in level} == {torch.float32}


def test_a_model_of_a_backbone_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no_such_network"):
        UniMMAD(RECIPE.model.model_copy(update={"backbone": "no_such_network"}))


def test_a_residual_model_begins_with_the_shared_features_as_every_reconstruction():
    built, _ = new_model(load_recipe("tiny", ["model.decoder_output=residual", "model.initial_embedding=sum"]), seed=0)
    images_TCHW = images()
    with torch.no_grad():
        output = run(built.eval(), images_TCHW)
        embedded = torch.stack([part.sum(0) for part in images_TCHW.split(COUNTS)])
        shared = built.compression(built.encoder(embedded))
    for distance_Thw, shared_BChw, teacher_TChw in zip(
        output.distances, shared, built.teacher_maps(images_TCHW), strict=True
    ):
        of_tokens = shared_BChw[torch.tensor([0, 1, 1, 1, 2, 2])]
        torch.testing.assert_close(distance_Thw, 1 - F.cosine_similarity(teacher_TChw, of_tokens), atol=1e-5, rtol=1e-4)


def test_drawn_images_are_the_encoders_and_the_teacher_sees_what_was_there(model):
    clean_TCHW, drawn_TCHW = images(), images().flip(-1)
    seen = {}
    hooks = [
        part.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
        for name, part in (("teacher", model.teacher), ("embedding", model.input_embedding))
    ]
    with torch.no_grad():
        model(clean_TCHW, COUNTS, torch.tensor(SLOTS), drawn_TCHW=drawn_TCHW)
    for hook in hooks:
        hook.remove()
    assert torch.equal(seen["teacher"], clean_TCHW)
    assert torch.equal(seen["embedding"], drawn_TCHW)
