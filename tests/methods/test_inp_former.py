import pytest
import torch
from methods.peer_vits import (
    assert_can_be_exported,
    assert_joins_maps,
    assert_teacher_is_frozen,
    assert_trains_as_one_rank,
    assert_trains_in_bf16,
    tiny_vit,
)

from unimmad.methods.inp_former import INPFormer, INPFormerSettings

SIZES = {"image_size": 16, "backbone_weights": "none", "blocks": (0, 1, 2), "groups": ((0, 1), (2,)), "prototypes": 3}


@pytest.fixture
def method() -> INPFormer:
    torch.manual_seed(0)
    return INPFormer(INPFormerSettings(**SIZES, backbone=tiny_vit()))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"blocks": (2, 1)}, r"blocks \(2, 1\) must ascend"),
        ({"groups": ((0, 1),)}, r"groups \(\(0, 1\),\) must have every place in blocks, 0 to 2"),
        ({"prototypes": 0}, "prototypes"),
        ({"gather_weight": -0.1}, "gather_weight"),
        ({"mining_power": -1.0}, "mining_power"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        INPFormerSettings(**{**SIZES, **wrong})


def test_the_teacher_stays_as_it_is_and_all_else_is_trained(method, images):
    assert_teacher_is_frozen(method, images)


def test_it_trains_in_bf16(method, images):
    assert_trains_in_bf16(method, images)


def test_it_can_be_exported(method):
    assert_can_be_exported(method)


def test_maps_of_a_sample_are_joined(method, images):
    assert_joins_maps(method, images)


def test_the_mean_distance_is_that_of_all_ranks(method, images):
    assert_trains_as_one_rank(method, images, step=0)


def test_prototypes_are_drawn_from_the_image_alone(method, images):
    together = method.compare(images).prototypes_TMD
    assert not torch.allclose(together[0], together[1])
    torch.testing.assert_close(method.compare(images[1:2]).prototypes_TMD[0], together[1])


def test_nothing_but_prototypes_goes_through_the_decoder(method):
    """Without values the tokens that come out are the same at every patch, whatever goes in."""
    block = method.decoder[0]
    dim = block.attn.kv.in_features
    with torch.no_grad():
        block.attn.kv.weight[dim:].zero_()
        out = block(torch.randn(1, 16, dim), torch.randn(1, 3, dim))
    torch.testing.assert_close(out, out[:, :1].expand_as(out))


def test_prototypes_start_wide_and_linear_layers_small(method):
    assert method.prototypes_MD.std() > 0.5
    for part in (method.extractor, method.bottleneck, method.decoder):
        for module in part.modules():
            if isinstance(module, torch.nn.Linear):
                assert 0 < module.weight.abs().max() <= 0.03
                assert (module.bias == 0).all()
