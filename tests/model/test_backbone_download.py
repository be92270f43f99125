"""ImageNet weights where there is a network, a proxy that refuses, or neither."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from unimmad.model import backbone as backbone_module
from unimmad.model.backbone import Backbone, load_backbone_weights


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(backbone_module, "_resolves", lambda url: False)
    monkeypatch.setattr(backbone_module.hub_constants, "HF_HUB_CACHE", str(tmp_path / "empty cache"))


@pytest.fixture(scope="module")
def target() -> Backbone:
    """A new ResNet-18, for what leaves it as it is."""
    return Backbone("resnet18")


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


def test_downloaded_weights_that_are_not_finite_are_refused(target, monkeypatch):
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
