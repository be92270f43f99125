from __future__ import annotations

import logging
import pickle
import time
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unimmad.assembly import new_model
from unimmad.config import load_recipe
from unimmad.model import backbone as backbone_module
from unimmad.model.backbone import Backbone, freeze_batchnorm, load_backbone_weights, read_state_dict


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(backbone_module, "_resolves", lambda url: False)
    monkeypatch.setattr(backbone_module.hub_constants, "HF_HUB_CACHE", str(tmp_path / "empty cache"))


@pytest.fixture(scope="module")
def source() -> Backbone:
    """A ResNet-18 whose every tensor, running statistics included, is unlike a new one's."""
    torch.manual_seed(5)
    network = Backbone("resnet18").eval()
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5) if name.endswith("running_var") else tensor.normal_(std=0.1)
    return network


def maps_of(backbone: Backbone) -> list[torch.Tensor]:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backbone.eval()(images)


def outputs_equal(first: Backbone, second: Backbone) -> bool:
    return all(torch.equal(a, b) for a, b in zip(maps_of(first), maps_of(second), strict=True))


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
    maps = maps_of(backbone)
    assert [tuple(x.shape) for x in maps] == [(1, c, 64 // s, 64 // s) for c, s in zip(channels, (4, 8, 16))]
    assert all((x >= 0).all() for x in maps)
    assert all((x > 0).any() for x in maps)


@pytest.mark.parametrize("name", ["resnet18", "wide_resnet50_2"])
def test_the_stage_of_stride_32_is_not_built(name):
    assert not any("layer4" in name for name, _ in Backbone(name).named_parameters())


def test_a_network_without_these_strides_is_refused_with_its_own():
    with pytest.raises(ValueError, match=r"model\.backbone: vit_tiny_patch16_224 has features at strides \[16, .*4, 8 and 16"):
        Backbone("vit_tiny_patch16_224")


def test_an_unknown_network_is_refused_by_name():
    with pytest.raises(ValueError, match=r"model\.backbone: .*'resnet1888'"):
        Backbone("resnet1888")


def test_no_weights_leave_the_network_as_it_is():
    torch.manual_seed(1)
    backbone = Backbone("resnet18")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    assert "none" in load_backbone_weights(backbone, "none")
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_imagenet_without_a_network_is_refused_quickly_and_says_what_to_do(no_network):
    backbone = Backbone("resnet18")
    start = time.perf_counter()
    with pytest.raises(ValueError, match="ImageNet weights of resnet18 can't be had") as raised:
        load_backbone_weights(backbone, "imagenet")
    assert time.perf_counter() - start < 10
    assert "model.backbone_weights=FILE" in str(raised.value)
    assert "model.backbone_weights=none" in str(raised.value)


def test_imagenet_or_none_goes_on_without_a_network_and_says_so(no_network, caplog):
    backbone = Backbone("resnet18")
    with caplog.at_level(logging.WARNING):
        said = load_backbone_weights(backbone, "imagenet-or-none")
    assert "random" in said
    assert "ImageNet weights could not be had" in said
    assert "going on with random ones" in caplog.text


def test_looking_for_imagenet_weights_leaves_the_hub_setting_as_it_was(no_network, monkeypatch):
    monkeypatch.setattr(backbone_module.hub_constants, "HF_HUB_OFFLINE", False)
    load_backbone_weights(Backbone("resnet18"), "imagenet-or-none")
    assert backbone_module.hub_constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("form", ["pth", "safetensors", "wrapped", "data parallel", "whole network", "without counters"])
def test_a_file_gives_the_same_outputs_as_its_network(form, source, tmp_path):
    state = dict(source.network.state_dict())
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "wrapped":
        torch.save({"state_dict": state, "epoch": 3}, path)
    elif form == "data parallel":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    elif form == "whole network":
        torch.save(state | {"fc.weight": torch.zeros(10, 512), "layer4.0.conv1.weight": torch.zeros(1)}, path)
    elif form == "without counters":
        torch.save({name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}, path)
    else:
        torch.save(state, path)
    backbone = Backbone("resnet18")
    assert not outputs_equal(backbone, source)
    assert path.name in load_backbone_weights(backbone, str(path))
    assert outputs_equal(backbone, source)


def test_tensors_left_out_are_logged(source, tmp_path, caplog):
    path = tmp_path / "weights.pth"
    torch.save(source.network.state_dict() | OrderedDict({"fc.weight": torch.zeros(10, 512)}), path)
    with caplog.at_level(logging.INFO):
        load_backbone_weights(Backbone("resnet18"), str(path))
    assert "fc.weight" in caplog.text


class Payload:
    """What a file with more than tensors would run when unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("the file was unpickled",))


def damage(kind: str, state: dict[str, torch.Tensor], folder):
    path = folder / ("weights.safetensors" if kind.endswith("safetensors") else "weights.pth")
    if kind == "missing tensor":
        torch.save({name: t for name, t in state.items() if name != "layer2.0.conv1.weight"}, path)
    elif kind == "other shape":
        torch.save(state | {"layer2.0.conv1.weight": torch.zeros(3, 3)}, path)
    elif kind == "short pth":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "short safetensors":
        save_file(state, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "empty safetensors":
        path.write_bytes(b"")
    elif kind == "empty pth":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("not weights at all\n")
    elif kind == "torch file of an object":
        torch.save({"state_dict": Payload()}, path)
    elif kind == "plain pickle of an object":
        path.write_bytes(pickle.dumps(Payload()))
    elif kind == "plain pickle of a list":
        path.write_bytes(pickle.dumps([1, 2, 3]))
    elif kind == "list of tensors":
        torch.save(list(state.values()), path)
    elif kind == "numbers":
        torch.save({"a": 1}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing tensor", r"1 of its tensors are missing, first layer2\.0\.conv1\.weight"),
        ("other shape", r"layer2\.0\.conv1\.weight is \[3, 3\], not \[128, 64, 3, 3\]"),
        ("short pth", "can't be read"),
        ("short safetensors", "can't be read"),
        ("empty pth", "can't be read"),
        ("empty safetensors", "can't be read"),
        ("text", "can't be read|not read for safety"),
        ("torch file of an object", "not read for safety"),
        ("plain pickle of an object", "not read for safety"),
        ("plain pickle of a list", "can't be read|not read for safety|no state dict"),
        ("list of tensors", "no state dict of tensors"),
        ("numbers", "no state dict of tensors"),
        ("absent", "does not exist"),
    ],
)
def test_a_file_that_does_not_fit_is_named_and_changes_nothing(kind, says, source, tmp_path):
    path = damage(kind, dict(source.network.state_dict()), tmp_path)
    backbone = Backbone("resnet18")
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=says) as raised:
        load_backbone_weights(backbone, str(path))
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_a_state_dict_is_read_under_its_own_names(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"model": {"module.a": torch.arange(3), "b": torch.ones(2)}}, path)
    state = read_state_dict(path)
    assert list(state) == ["a", "b"]
    assert torch.equal(state["a"], torch.arange(3))


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
    model, _ = new_model(load_recipe("tiny", [f"model.encoder_batchnorm={mode}"]).model, seed=0)
    for _ in range(2):
        norms = [child for child in model.encoder.modules() if isinstance(child, nn.BatchNorm2d)]
        assert norms
        assert {norm.training for norm in norms} == {mode == "batch"}
        assert {norm.weight.requires_grad for norm in norms} == {mode == "batch"}
        assert model.compression.training
        model.eval()
        model.train()


def test_the_teacher_stays_in_evaluation_mode_and_without_gradients():
    model, _ = new_model(load_recipe("tiny").model, seed=0)
    for mode in (True, False, True):
        model.train(mode)
        assert model.encoder.training is mode
        assert not any(child.training for child in model.teacher.modules())
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
