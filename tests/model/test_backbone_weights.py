"""Backbones' weights from files: several forms are read, and what does not fit is named."""

from __future__ import annotations

import logging
import pickle

import pytest
import torch
from safetensors.torch import save_file

from unimmad.model.backbone import Backbone, load_backbone_weights, read_state_dict


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


def outputs_equal(first: Backbone, second: Backbone) -> bool:
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return all(torch.equal(a, b) for a, b in zip(first.eval()(images), second.eval()(images), strict=True))


def test_no_weights_leave_the_network_as_it_is(target):
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    assert "none" in load_backbone_weights(target, "none")
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


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
