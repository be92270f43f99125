"""Feature networks from timm: the frozen teacher and the encoder are two copies of one (METHOD parts 1 and 3).

The methods that UniMMAD is compared with take their teachers from here, too, at strides of their own. How weights come
into any network of timm stands here too; vit.py has those that give tokens.

Letters: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import logging
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unimmad.model.backends.torchvision_repair import ensure_torchvision_imports
from unimmad.model.finite import check_finite

ensure_torchvision_imports()
import timm  # noqa: E402
from huggingface_hub import constants as hub_constants  # noqa: E402
from timm.models.efficientnet import EfficientNetFeatures  # noqa: E402
from timm.models.mobilenetv3 import MobileNetV3Features  # noqa: E402

logger = logging.getLogger(__name__)

STRIDES = (4, 8, 16)
RANDOM_WEIGHTS = "none (random)"
"""What ``load_backbone_weights`` says of a network that it gave none."""


class TimmNetwork(nn.Module, ABC):
    """The part of a timm network that is used, and how weights come into it."""

    name: str
    network: Any
    """A module; timm's have no types."""
    trained_on: ClassVar[str] = "ImageNet"
    """What messages say of timm's weights."""

    @abstractmethod
    def new_network(self, pretrained: bool) -> Any:
        """The used part of the network, with timm's weights or random ones."""

    def fitted(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A state dict of the same network, perhaps made for another size of image, as ``network`` takes it."""
        return state


class LevelNetwork(TimmNetwork):
    """One that gives a map for each of several levels, the finest first: [N, C_l, h, w]."""

    channels: tuple[int, ...]
    """C_l of each level."""
    strides: tuple[int, ...]
    """In pixels, of each level; they do not fall."""

    @abstractmethod
    def forward(self, images_NCHW: Tensor) -> list[Tensor]:
        """The map of each level."""


class Backbone(LevelNetwork):
    """A timm network cut after its stage of stride 16; gives the maps at strides 4, 8 and 16, each through a ReLU."""

    def __init__(
        self, name: str, strides: Sequence[int] = STRIDES, rectified: bool = True, without_rest: bool = False
    ) -> None:
        """Build with random weights.

        Args:
            name: of timm's list.
            strides: of the maps, finest first; the network is cut after the last one's stage.
            rectified: False leaves the ReLU behind every map out.
            without_rest: no blocks behind the last map's, which timm keeps in EfficientNet and MobileNet (and
                UniMMAD's checkpoints hold).

        Raises:
            ValueError: timm knows no such network, or it has no features at ``strides``.
        """
        super().__init__()
        self.name = name
        self.strides = tuple(strides)
        self.rectified = rectified
        self.network = self.new_network(pretrained=False)
        if without_rest and isinstance(self.network, EfficientNetFeatures | MobileNetV3Features):
            last = int(self.network.feature_info.module_name()[-1].removeprefix("blocks."))
            del self.network.blocks[last + 1 :]
        self.channels = tuple(self.network.feature_info.channels())

    def new_network(self, pretrained: bool) -> Any:
        stages = _stages(self.name, self.strides)
        return timm.create_model(self.name, pretrained=pretrained, features_only=True, out_indices=stages)

    def forward(self, images_NCHW: Tensor) -> list[Tensor]:
        maps = self.network(images_NCHW)
        return [features.relu() for features in maps] if self.rectified else maps


def load_backbone_weights(backbone: TimmNetwork, weights: str) -> str:
    """Load ``imagenet``, ``imagenet-or-none``, ``none`` or a file into ``backbone``; returns in words what it now has.

    Raises:
        ValueError: ImageNet weights can't be had (with ``imagenet``), the file can't be read or does not fit, or a
            weight is NaN or infinite.
    """
    if weights == "none":
        return RANDOM_WEIGHTS
    if weights in ("imagenet", "imagenet-or-none"):
        try:
            _load_imagenet(backbone)
            return f"{backbone.trained_on} ({backbone.name}, timm)"
        except Exception as error:  # the hub's client lets its HTTP library's errors through, which are not OSErrors
            reason = _first_line(error)
            if weights == "imagenet":
                raise ValueError(
                    f"{backbone.trained_on} weights of {backbone.name} can't be had ({reason}); give a local file with "
                    "--set model.backbone_weights=FILE, or train without by --set model.backbone_weights=none"
                ) from None
            logger.warning(
                "%s weights of %s can't be had (%s): going on with random ones",
                backbone.trained_on,
                backbone.name,
                reason,
            )
            return RANDOM_WEIGHTS
    path = Path(weights)
    _load_matching(backbone, read_state_dict(path), str(path))
    return f"file {path.name}"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of a .pth file read without unpickling anything but tensors.

    Raises:
        ValueError: no such file, or none that can be read so.
    """
    if not path.is_file():
        raise ValueError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise ValueError(f"weights file {path} holds more than tensors, and is not read for safety") from None
    except Exception as error:  # a damaged file makes the readers fail in many ways, KeyError and IndexError among them
        raise ValueError(f"weights file {path} can't be read: {_first_line(error)}") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) and _is_plain(value) for name, value in state.items()
    ):
        raise ValueError(f"weights file {path} holds no state dict of tensors")
    tensors = {name.removeprefix("module."): value for name, value in state.items()}
    if len(tensors) < len(state):
        raise ValueError(f"weights file {path} holds a tensor twice, with and without 'module.' before its name")
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    """Neither sparse, nor quantised, nor without values."""
    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta


def freeze_batchnorm(module: nn.Module) -> None:
    """Keep every BatchNorm below ``module`` as loaded: running statistics, no gradient for its scale and shift.

    Call it after every ``module.train()``.
    """
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.eval()
            child.requires_grad_(False)


@cache
def _stages(name: str, strides: tuple[int, ...]) -> tuple[int, ...]:
    try:
        # The answer is kept, so the first network of a process must not draw more random numbers than the second.
        with torch.random.fork_rng():
            probe = timm.create_model(name, pretrained=False, features_only=True)
    except Exception as error:  # timm raises many kinds for an unknown or unsuitable network
        raise ValueError(f"model.backbone: timm can't build {name!r} with features_only: {error}") from None
    reductions = list(probe.feature_info.reduction())
    if any(reductions.count(stride) != 1 for stride in strides):
        *others, last = map(str, strides)
        wanted = f"strides {', '.join(others)} and {last} are" if others else f"stride {last} is"
        raise ValueError(f"model.backbone: {name} has features at strides {reductions}; {wanted} needed")
    indices = probe.feature_info.out_indices
    return tuple(indices[reductions.index(stride)] for stride in strides)


def _load_imagenet(backbone: TimmNetwork) -> None:
    offline_before = hub_constants.HF_HUB_OFFLINE
    hub_constants.HF_HUB_OFFLINE = offline_before or not _resolves(hub_constants.ENDPOINT)
    try:
        source = backbone.new_network(pretrained=True)
    finally:
        hub_constants.HF_HUB_OFFLINE = offline_before
    check_finite(source.state_dict(), f"the weights of {backbone.name}")
    state = backbone.fitted(source.state_dict())
    backbone.network.load_state_dict({name: state[name] for name in backbone.network.state_dict()})


def _resolves(url: str) -> bool:
    """Whether the host has an address; without one the hub's client would retry for most of a minute."""
    if getproxies().keys() & {"https", "all"}:
        return True  # the proxy looks the host up, which this machine may not be able to
    try:
        socket.getaddrinfo(urlsplit(url).hostname, 443)
    except OSError:
        return False
    return True


def calibrate_batchnorm(backbone: TimmNetwork, batches: Iterable[Tensor]) -> None:
    """Set every BatchNorm's statistics to those of ``batches`` of images, [N, 3, H, W].

    For random weights: with the statistics that a new network has, its features hardly depend on the image. Without a
    BatchNorm no batch is asked for.
    """
    layers = [layer for layer in backbone.modules() if isinstance(layer, nn.BatchNorm2d)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain average over all batches
        layer.train()
    with torch.no_grad():
        for images_NCHW in batches:
            backbone(images_NCHW)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _load_matching(backbone: TimmNetwork, state: Mapping[str, Tensor], origin: str) -> None:
    wanted = backbone.network.state_dict()
    try:
        state = backbone.fitted(state)
    except Exception as error:  # tensors of unforeseen shapes make it fail in many ways
        raise ValueError(f"{origin} does not fit {backbone.name}: {_first_line(error)}") from None
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = [name for name in wanted if name not in state and name not in counters]
    if missing:
        raise ValueError(
            f"{origin} does not fit {backbone.name}: {len(missing)} of its tensors are missing, first {missing[0]}"
        )
    for name, tensor in wanted.items():
        if name in state and state[name].shape != tensor.shape:
            raise ValueError(
                f"{origin} does not fit {backbone.name}: {name} is {list(state[name].shape)}, not {list(tensor.shape)}"
            )
        if name in state and state[name].is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{origin} does not fit {backbone.name}: {name} is {state[name].dtype}")
    unused = sorted(set(state) - set(wanted))
    if unused:
        logger.info("%s: %d tensors not needed and left out (%s, ...)", origin, len(unused), unused[0])
    used = {name: state[name] for name in wanted if name in state}
    check_finite(used, f"weights file {origin}")
    backbone.network.load_state_dict(used, strict=False)
