from __future__ import annotations

import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from unimmad.config import load_recipe
from unimmad.methods.registry import new_model
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


@pytest.fixture(scope="module")
def target() -> Backbone:
    """A new ResNet-18, for what leaves it as it is."""
    return Backbone("resnet18")


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


def test_no_weights_leave_the_network_as_it_is(target):
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    assert "none" in load_backbone_weights(target, "none")
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


def test_imagenet_without_a_network_is_refused_quickly_and_says_what_to_do(no_network, target):
    start = time.perf_counter()
    with pytest.raises(ValueError, match="ImageNet weights of resnet18 can't be had") as raised:
        load_backbone_weights(target, "imagenet")
    assert time.perf_counter() - start < 10
    assert "model.backbone_weights=FILE" in str(raised.value)
    assert "model.backbone_weights=none" in str(raised.value)


def test_imagenet_or_none_goes_on_without_a_network_and_says_so(no_network, target, caplog):
    with caplog.at_level(logging.WARNING):
        said = load_backbone_weights(target, "imagenet-or-none")
    assert said == backbone_module.RANDOM_WEIGHTS
    assert "going on with random ones" in caplog.text


@contextmanager
def server(answer: bytes) -> Iterator[str]:
    """Its address: it says ``answer`` to whatever is asked, and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


LOAD_BOTH_WAYS = """
from unimmad.model.backbone import Backbone, load_backbone_weights
print(load_backbone_weights(Backbone("resnet18"), "imagenet-or-none"))
try:
    load_backbone_weights(Backbone("resnet18"), "imagenet")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("answer", "variables"),
    [
        (
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
            {"HF_ENDPOINT": "https://localhost", "https_proxy": "{}", "no_proxy": ""},
        ),
        (b"", {"HF_ENDPOINT": "{}", "no_proxy": "127.0.0.1"}),
    ],
    ids=["a proxy that refuses", "a connection that breaks"],
)
def test_a_download_that_fails_is_like_no_network(answer, variables, tmp_path):
    """In a process of its own: the hub's client reads its settings when it is imported."""
    with server(answer) as address:
        settings = {name: value.format(address) for name, value in variables.items()}
        done = subprocess.run(
            [sys.executable, "-c", LOAD_BOTH_WAYS],
            env={**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), **settings},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr
    went_on, refused = done.stdout.splitlines()
    assert went_on == backbone_module.RANDOM_WEIGHTS
    assert refused.startswith("ImageNet weights of resnet18 can't be had (")


def test_looking_for_imagenet_weights_leaves_the_hub_setting_as_it_was(no_network, target, monkeypatch):
    monkeypatch.setattr(backbone_module.hub_constants, "HF_HUB_OFFLINE", False)
    load_backbone_weights(target, "imagenet-or-none")
    assert backbone_module.hub_constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("proxies", "asked"), [({}, False), ({"http": "x"}, False), ({"https": "x"}, True), ({"all": "x"}, True)]
)
def test_the_hub_is_asked_where_it_has_an_address_or_a_proxy_may_find_one(proxies, asked, monkeypatch):
    def no_address(*_):
        raise socket.gaierror

    monkeypatch.setattr(backbone_module.socket, "getaddrinfo", no_address)
    monkeypatch.setattr(backbone_module, "getproxies", lambda: proxies)
    assert backbone_module._resolves("https://hub.invalid") is asked


FORMS = {
    "as it is": lambda state: state,
    "wrapped": lambda state: {"state_dict": state, "epoch": 3},
    "data parallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "whole network": lambda state: state | {"fc.weight": torch.zeros(10, 512), "layer4.0.bn1.bias": torch.zeros(512)},
    "without counters": lambda state: {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_pth_file_gives_the_same_outputs_as_its_network(form, source, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(FORMS[form](dict(source.network.state_dict())), path)
    backbone = Backbone("resnet18")
    assert not outputs_equal(backbone, source)
    assert "weights.pth" in load_backbone_weights(backbone, str(path))
    assert outputs_equal(backbone, source)


def test_a_safetensors_file_gives_the_same_outputs_as_its_network(source, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(dict(source.network.state_dict()), path)
    backbone = Backbone("resnet18")
    load_backbone_weights(backbone, str(path))
    assert outputs_equal(backbone, source)


def test_tensors_left_out_are_logged(source, tmp_path, caplog):
    path = tmp_path / "weights.pth"
    torch.save(FORMS["whole network"](dict(source.network.state_dict())), path)
    with caplog.at_level(logging.INFO):
        load_backbone_weights(Backbone("resnet18"), str(path))
    assert "fc.weight" in caplog.text


class Payload:
    """What a file with more than tensors would run when unpickled."""

    def __reduce__(self):
        return (pytest.fail, ("the file was unpickled",))


def cut_short(path):
    path.write_bytes(path.read_bytes()[:5000])


def zeros_in_the_middle(path):
    content = bytearray(path.read_bytes())
    content[700:740] = bytes(40)
    path.write_bytes(content)


def without(state, name):
    return {other: tensor for other, tensor in state.items() if other != name}


def with_one(state, value):
    changed = state["layer2.0.conv1.weight"].clone()
    changed[0, 0, 0, 0] = value
    return state | {"layer2.0.conv1.weight": changed}


UNFIT = {
    "missing tensor": lambda state, path: torch.save(without(state, "layer2.0.conv1.weight"), path),
    "other shape": lambda state, path: torch.save(state | {"layer2.0.conv1.weight": torch.zeros(3, 3)}, path),
    "integers": lambda state, path: torch.save(
        state | {"layer2.0.conv1.weight": torch.zeros(128, 64, 3, 3, dtype=torch.int64)}, path
    ),
    "a name twice": lambda state, path: torch.save(state | {"module.conv1.weight": torch.zeros(1)}, path),
    "cut short": lambda state, path: (torch.save(state, path), cut_short(path)),
    "empty": lambda state, path: path.write_bytes(b""),
    "damaged": lambda state, path: (
        torch.save(state, path, _use_new_zipfile_serialization=False),
        zeros_in_the_middle(path),
    ),
    "text": lambda state, path: path.write_text("not weights at all\n"),
    "object": lambda state, path: torch.save({"state_dict": Payload()}, path),
    "pickle of an object": lambda state, path: path.write_bytes(pickle.dumps(Payload(), protocol=2)),
    "list of tensors": lambda state, path: torch.save(list(state.values()), path),
    "numbers": lambda state, path: torch.save({"a": 1}, path),
    "integers for names": lambda state, path: torch.save(dict(enumerate(state.values())), path),
    "nan": lambda state, path: torch.save(with_one(state, torch.nan), path),
    "infinite": lambda state, path: torch.save(with_one(state, -torch.inf), path),
    "without values": lambda state, path: torch.save(
        state | {"layer2.0.conv1.weight": state["layer2.0.conv1.weight"].to("meta")}, path
    ),
    "sparse": lambda state, path: torch.save(
        state | {"layer2.0.conv1.weight": state["layer2.0.conv1.weight"].to_sparse()}, path
    ),
    "absent": lambda state, path: None,
}


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing tensor", r"1 of its tensors are missing, first layer2\.0\.conv1\.weight"),
        ("other shape", r"layer2\.0\.conv1\.weight is \[3, 3\], not \[128, 64, 3, 3\]"),
        ("integers", r"layer2\.0\.conv1\.weight is torch\.int64"),
        ("a name twice", "holds a tensor twice, with and without 'module.'"),
        ("cut short", "can't be read"),
        ("empty", "can't be read"),
        ("damaged", "can't be read|not read for safety"),
        ("text", "can't be read|not read for safety"),
        ("object", "not read for safety"),
        ("pickle of an object", "not read for safety"),
        ("list of tensors", "no state dict of tensors"),
        ("numbers", "no state dict of tensors"),
        ("integers for names", "no state dict of tensors"),
        ("nan", r"layer2\.0\.conv1\.weight holds values that are NaN or infinite"),
        ("infinite", r"layer2\.0\.conv1\.weight holds values that are NaN or infinite"),
        ("without values", "no state dict of tensors"),
        ("sparse", "no state dict of tensors"),
        ("absent", "does not exist"),
    ],
)
def test_a_file_that_does_not_fit_is_named_and_changes_nothing(kind, says, source, target, tmp_path):
    path = tmp_path / "weights.pth"
    UNFIT[kind](dict(source.network.state_dict()), path)
    assert_refused(target, path, says)


@pytest.mark.parametrize("spoil", [cut_short, lambda path: path.write_bytes(b""), lambda path: path.write_text("text")])
def test_a_spoilt_safetensors_file_is_named_and_changes_nothing(spoil, source, target, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(dict(source.network.state_dict()), path)
    spoil(path)
    assert_refused(target, path, "can't be read")


def test_downloaded_weights_that_are_not_finite_are_refused(source, target, monkeypatch):
    broken = Backbone("resnet18")
    broken.network.bn1.running_mean[3] = torch.inf
    monkeypatch.setattr(backbone_module, "_resolves", lambda url: False)
    monkeypatch.setattr(backbone_module.timm, "create_model", lambda *words, **options: broken.network)
    with pytest.raises(
        ValueError, match=r"ImageNet weights .* bn1\.running_mean holds values that are NaN or infinite"
    ):
        load_backbone_weights(target, "imagenet")


def test_downloaded_weights_reach_a_network_without_its_rest(monkeypatch):
    downloaded = []

    def without_download(name, pretrained, **options):
        assert pretrained
        downloaded.append(create_model(name, pretrained=False, **options))
        return downloaded[-1]

    target = Backbone("efficientnet_b0", (2, 16), without_rest=True)
    create_model = backbone_module.timm.create_model
    monkeypatch.setattr(backbone_module, "_resolves", lambda url: False)
    monkeypatch.setattr(backbone_module.timm, "create_model", without_download)
    assert load_backbone_weights(target, "imagenet") == "ImageNet (efficientnet_b0, timm)"
    wanted = downloaded[0].state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in target.network.state_dict().items())


def assert_refused(backbone: Backbone, path, says: str) -> None:
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
