import pytest
import torch
from methods.peer_vits import (
    assert_can_be_exported,
    assert_joins_maps,
    assert_teacher_is_frozen,
    assert_trains_as_one_rank,
    assert_trains_in_bf16,
    loss_and_gradients,
    tiny_vit,
)

from unimmad.methods.dinomaly import Dinomaly, DinomalySettings, largest_at
from unimmad.methods.token_groups import with_gradient_times
from unimmad.model.method import alone

SIZES = {"image_size": 16, "backbone_weights": "none", "blocks": (0, 1, 2), "groups": ((0, 1), (2,))}


@pytest.fixture
def method() -> Dinomaly:
    torch.manual_seed(0)
    return Dinomaly(DinomalySettings(**SIZES, backbone=tiny_vit(), dropout=0.0))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_defaults_are_the_authors():
    settings = DinomalySettings()
    assert settings.backbone == "vit_base_patch14_reg4_dinov2.lvd142m"
    assert settings.image_size == 392
    assert settings.blocks == (2, 3, 4, 5, 6, 7, 8, 9)
    assert settings.groups == ((0, 1, 2, 3), (4, 5, 6, 7))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"blocks": (2, 1)}, r"blocks \(2, 1\) must ascend"),
        ({"blocks": (1, 1)}, r"blocks \(1, 1\) must ascend"),
        ({"blocks": ()}, "blocks"),
        ({"groups": ((0, 1),)}, r"groups \(\(0, 1\),\) must have every place in blocks, 0 to 2"),
        ({"groups": ((0, 1), (2, 3))}, "groups .* must have every place in blocks, 0 to 2, and no others"),
        ({"groups": ((0, 1, 2), ())}, "groups"),
        ({"dropout": 1.0}, "dropout"),
        ({"easy_share": 1.0}, "easy_share"),
        ({"easy_share_steps": -1}, "easy_share_steps"),
        ({"backbone": "hf-hub:someone/else"}, "backbone"),
        ({"position_resampling": "nearest"}, "position_resampling"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        DinomalySettings(**{**SIZES, **wrong})


def test_the_teacher_stays_as_it_is_and_all_else_is_trained(method, images):
    assert_teacher_is_frozen(method, images)


def test_it_trains_in_bf16(method, images):
    assert_trains_in_bf16(method, images)


def test_it_can_be_exported(method):
    assert_can_be_exported(method)


def test_maps_of_a_sample_are_joined(method, images):
    assert_joins_maps(method, images)


def test_what_is_easy_is_the_same_on_two_ranks(method, images):
    assert_trains_as_one_rank(method, images, step=700)


def test_the_share_of_easy_places_grows_and_the_loss_does_not_change(method, images):
    losses, norms = [], []
    for step in (0, 500, 1000, 2000):
        losses.append(loss_and_gradients(method, images, step).item())
        norms.append(method.decoder[0].mlp.fc1.weight.grad.norm().item())
    assert len(set(losses)) == 1
    assert norms[0] > norms[1] > norms[2] == norms[3]


def test_dropout_is_for_training_alone(images):
    torch.manual_seed(0)
    method = Dinomaly(DinomalySettings(**SIZES, backbone=tiny_vit()))

    def decoded() -> torch.Tensor:
        return method.compare(images).decoder[0]

    method.eval()
    assert torch.equal(decoded(), decoded())
    method.train()
    assert not torch.equal(decoded(), decoded())


@pytest.mark.parametrize("place", [1, 2, 17, 39, 40])
def test_the_largest_value_at_a_place_is_that_of_a_sorted_list(place):
    values = torch.rand(5, 8, generator=torch.Generator().manual_seed(place)).pow(9)
    values[0, :4] = values[1, 0]  # equal ones count one by one
    values[2, :2] = 0.0
    expected = values.flatten().sort(descending=True).values[place - 1]
    assert torch.equal(largest_at(values, torch.tensor(place), alone), expected)


def test_a_gradient_is_changed_and_the_value_is_not():
    values = torch.ones(1, 2, 1, 2, requires_grad=True)
    weighted = with_gradient_times(values, torch.tensor([[[0.5, 2.0]]]))
    assert torch.equal(weighted, values)
    weighted.sum().backward()
    assert values.grad.tolist() == [[[[0.5, 2.0]], [[0.5, 2.0]]]]


def test_linear_layers_start_small(method):
    for name, parameter in method.named_parameters():
        if name.startswith(("decoder", "bottleneck")) and ".norm" not in name:
            assert (parameter.abs() <= 0.03).all()
            assert (parameter == 0).all() == name.endswith("bias")
