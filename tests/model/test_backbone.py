"""Networks of timm as teacher and encoder: their maps, their frozen parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unimmad.config import load_recipe
from unimmad.methods.registry import new_model
from unimmad.model.backbone import Backbone, freeze_batchnorm


def maps_of(backbone: Backbone) -> list[torch.Tensor]:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backbone.eval()(images)


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("resnet18", (64, 128, 256)),
        ("wide_resnet50_2.tv2_in1k", (256, 512, 1024)),
        ("efficientnet_b0", (24, 40, 112)),
        ("convnext_atto", (40, 80, 160)),
    ],
)
def test_maps_have_strides_4_8_16_and_the_promised_channels_and_no_negatives(name, channels):
    backbone = Backbone(name)
    assert backbone.channels == channels
    assert not any("layer4" in name for name, _ in backbone.named_parameters()), "stride 32 is computed for nothing"
    maps = maps_of(backbone)
    assert [tuple(x.shape[1:]) for x in maps] == [(channels[0], 16, 16), (channels[1], 8, 8), (channels[2], 4, 4)]
    assert all((x >= 0).all() for x in maps)
    assert all((x > 0).any() for x in maps)


def test_other_strides_come_with_negatives_and_without_the_rest_where_told():
    backbone = Backbone("efficientnet_b0", (2, 16), rectified=False, without_rest=True)
    assert backbone.channels == (16, 112)
    maps = maps_of(backbone)
    assert [tuple(x.shape[1:]) for x in maps] == [(16, 32, 32), (112, 4, 4)]
    assert all((x < 0).any() for x in maps)
    whole = Backbone("efficientnet_b0")
    assert (len(backbone.network.blocks), len(whole.network.blocks)) == (5, 7)
    whole.network.load_state_dict(backbone.network.state_dict(), strict=False)
    torch.testing.assert_close(maps_of(whole)[-1], maps[-1].relu())


def test_a_network_without_these_strides_is_refused_with_its_own():
    says = r"model\.backbone: vit_tiny_patch16_224 has features at strides \[16, .*strides 4, 8 and 16 are needed"
    with pytest.raises(ValueError, match=says):
        Backbone("vit_tiny_patch16_224")


def test_an_unknown_network_is_refused_by_name():
    with pytest.raises(ValueError, match=r"model\.backbone: .*'resnet1888'"):
        Backbone("resnet1888")


def test_a_frozen_batchnorm_uses_and_keeps_its_running_statistics_and_has_no_gradient():
    norm = nn.BatchNorm2d(2)
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([1.0, -1.0]))
        norm.running_var.copy_(torch.tensor([4.0, 9.0]))
    module = nn.Sequential(nn.Conv2d(2, 2, 1), norm).train()
    freeze_batchnorm(module)
    x = torch.randn(3, 2, 4, 4)
    mean, deviation = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1), torch.tensor([4.0, 9.0]).view(1, 2, 1, 1).sqrt()
    torch.testing.assert_close(norm(x), (x - mean) / deviation, rtol=1e-4, atol=1e-4)
    module(x).sum().backward()
    assert module.training
    assert norm.weight.grad is None
    assert module[0].weight.grad is not None
    assert norm.running_mean.tolist() == [1.0, -1.0]


@pytest.mark.parametrize("mode", ["batch", "frozen"])
def test_only_a_frozen_encoder_keeps_its_batchnorm_in_evaluation_mode(mode):
    model, _ = new_model(load_recipe("tiny", [f"model.encoder_batchnorm={mode}"]), seed=0)
    for _ in range(2):
        norms = [child for child in model.encoder.modules() if isinstance(child, nn.BatchNorm2d)]
        assert norms
        assert {norm.training for norm in norms} == {mode == "batch"}
        assert {norm.weight.requires_grad for norm in norms} == {mode == "batch"}
        assert model.compression.training
        model.eval()
        model.train()


def test_the_teacher_stays_in_evaluation_mode_and_without_gradients():
    model, _ = new_model(load_recipe("tiny"), seed=0)
    for mode in (True, False, True):
        model.train(mode)
        assert model.encoder.training is mode
        assert not any(child.training for child in model.teacher.modules())
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
