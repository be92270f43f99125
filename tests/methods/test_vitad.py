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

from unimmad.methods.vitad import ViTAD, ViTADSettings

SIZES = {"image_size": 16, "backbone_weights": "none", "teacher_blocks": (0, 1), "student_blocks": (1, 2)}


@pytest.fixture
def method() -> ViTAD:
    torch.manual_seed(0)
    return ViTAD(ViTADSettings(**SIZES, backbone=tiny_vit(), neck_block=2))


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"teacher_blocks": (1, 0)}, r"teacher_blocks \(1, 0\) must ascend"),
        ({"student_blocks": (1, 1)}, r"student_blocks \(1, 1\) must ascend"),
        ({"student_blocks": (1, 2, 3)}, r"student_blocks \(1, 2, 3\) must be as many as teacher_blocks \(0, 1\)"),
        ({"teacher_blocks": (), "student_blocks": ()}, "teacher_blocks"),
        ({"neck_block": -1}, "neck_block"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        ViTADSettings(**{**SIZES, **wrong})


def test_the_teacher_stays_as_it_is_and_all_else_is_trained(method, images):
    assert_teacher_is_frozen(method, images)


def test_it_trains_in_bf16(method, images):
    assert_trains_in_bf16(method, images)


def test_it_can_be_exported(method):
    assert_can_be_exported(method)


def test_maps_of_a_sample_are_joined(method, images):
    assert_joins_maps(method, images)


def test_two_ranks_train_as_one(method, images):
    assert_trains_as_one_rank(method, images, step=0)


def test_no_block_is_built_that_nothing_comes_of(method):
    assert len(method.teacher.network.blocks) == 3
    assert len(method.student.blocks) == 3


def test_the_neck_may_be_any_block(images):
    for neck in (0, 3):
        method = ViTAD(ViTADSettings(**SIZES, backbone=tiny_vit(), neck_block=neck))
        assert len(method.teacher.network.blocks) == max(neck, 1) + 1
        seen = []
        method.fusion.register_forward_pre_hook(lambda part, inputs, seen=seen: seen.append(inputs[0]))
        compared = method.compare(images)
        assert torch.equal(seen[0].transpose(1, 2).unflatten(2, (4, 4)), compared.teacher[0]) == (neck == 0)
