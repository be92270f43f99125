from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from unimmad.config import TrainingSettings
from unimmad.methods.rd import RD, RDSettings
from unimmad.model.backbone import Backbone
from unimmad.model.method import StepFacts

SIZE = 64


def new_rd(backbone: str = "resnet18") -> RD:
    torch.manual_seed(0)
    return RD(RDSettings(image_size=SIZE, backbone=backbone, backbone_weights="none"))


@pytest.fixture(scope="module")
def method() -> RD:
    return new_rd()


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"image_size": 100}, "image_size 100 is not a multiple of 32"),
        ({"backbone": "hf-hub:someone/network"}, r"(?s)backbone.*name a network of timm's own list"),
        ({"student": 3}, r"(?s)student.*not permitted"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings, says):
    with pytest.raises(ValidationError, match=says):
        RDSettings(**settings)


def test_a_backbone_without_the_strides_is_refused_by_name():
    with pytest.raises(ValueError, match=r"model\.backbone: vit_tiny_patch16_224 .*strides 4, 8 and 16 are needed"):
        new_rd("vit_tiny_patch16_224")


@pytest.mark.parametrize("backbone", ["resnet18", "resnet26", "efficientnet_b0"])
def test_a_step_reaches_every_trainable_parameter_and_no_other(backbone):
    method = new_rd(backbone)
    output = method(images(3), [2, 1], torch.tensor([0, 1, 0]))
    method.loss(output, StepFacts(torch.ones(3), TrainingSettings())).total.backward()
    for target_TChw, student_TChw in zip(output.compared.teacher, output.compared.student, strict=True):
        assert target_TChw.shape == student_TChw.shape
    for name, weight in method.named_parameters():
        assert weight.requires_grad is not name.startswith("teacher.")
        assert (weight.grad is not None and bool(weight.grad.any())) is weight.requires_grad, name


def test_nothing_behind_the_teachers_last_map_is_built():
    assert {name.split(".")[0] for name, _ in new_rd("resnet18").teacher.network.named_parameters()} == {
        "conv1", "bn1", "layer1", "layer2", "layer3",
    }  # fmt: skip
    assert len(new_rd("efficientnet_b0").teacher.network.blocks) == 5
    assert len(Backbone("efficientnet_b0").network.blocks) == 7, "UniMMAD's checkpoints hold them all"


@pytest.mark.parametrize(
    ("backbone", "inner", "counts"),
    [("resnet18", 64, [2, 2, 2]), ("resnet34", 64, [3, 4, 6]), ("wide_resnet50_2", 128, [3, 4, 6])],
)
def test_the_student_has_the_teachers_residual_blocks(backbone, inner, counts):
    with torch.device("meta"):
        student = new_rd(backbone).student
    assert [len(stage) for stage in student.stages] == counts
    assert student.stages[2][1].conv2.out_channels == inner


def test_the_teacher_stays_frozen_and_in_evaluation_mode(method):
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    for mode in (True, False, True):
        method.train(mode)
        assert method.student.training is mode
        assert not any(module.training for module in method.teacher.modules())
    method(images(2), [1, 1], torch.zeros(2, dtype=torch.int64))
    assert all(torch.equal(value, before[name]) for name, value in method.teacher.state_dict().items())


def test_the_maps_of_a_samples_images_are_joined_by_the_root_of_their_squares(method):
    method.eval()
    with torch.no_grad():
        alone_THW = method.maps(method(images(3), [1, 1, 1], torch.zeros(3, dtype=torch.int64)))
        joined_BHW = method.maps(method(images(3), [2, 1], torch.tensor([0, 1, 0])))
    wanted_BHW = torch.stack([alone_THW[:2].square().sum(dim=0).sqrt(), alone_THW[2]])
    torch.testing.assert_close(joined_BHW, wanted_BHW)
    assert joined_BHW.shape == (2, SIZE, SIZE)
    assert (joined_BHW > 0).all()


def test_the_backbone_is_loaded_as_the_settings_say(method, tmp_path):
    assert method.load_backbone() == "none (random)"
    path = tmp_path / "weights.pth"
    torch.save(method.teacher.network.state_dict(), path)
    other = RD(RDSettings(image_size=SIZE, backbone="resnet18", backbone_weights=str(path)))
    assert other.load_backbone() == "file weights.pth"
    for ours, wanted in zip(other.teacher_maps(images(1)), method.teacher_maps(images(1)), strict=True):
        torch.testing.assert_close(ours, wanted)
