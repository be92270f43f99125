"""BatchNorm taken into the convolution before it: the same numbers of a network that no longer trains.

So computes the teacher of a training step, of which no more is computed than the maps that are wanted.

Letters: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import copy
import logging
from typing import Any, cast

from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from unimmad.model.backbone import LevelNetwork
from unimmad.model.backends.private_torch import with_own_members


class FoldedTeacher:
    """A copy of the frozen teacher whose BatchNorm is folded into its convolutions: the same maps, to rounding.

    Not a module: the model's parameters, and so its checkpoints, stay those of the teacher as it was loaded.
    """

    def __init__(self, teacher: LevelNetwork) -> None:
        # Tensors by themselves: fake ones, of a simulated step, can't be deep-copied.
        tensors: dict[int, Any] = {id(buffer): buffer.clone() for buffer in teacher.buffers()}
        for weight in teacher.parameters():
            tensors[id(weight)] = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.network = copy.deepcopy(teacher, tensors).eval()
        fold_batchnorm(self.network)
        self.network.requires_grad_(False)

    def __call__(self, images_NCHW: Tensor) -> list[Tensor]:
        """The teacher's maps."""
        return self.network(images_NCHW)


def rest_on_host(teacher: LevelNetwork) -> None:
    """Checkpoints alone need the teacher itself once a folded one gives its maps."""
    if any(weight.device.type != "cpu" for weight in teacher.parameters()):
        teacher.to("cpu")


Convolution = nn.Conv2d | nn.ConvTranspose2d

logger = logging.getLogger(__name__)


def fold_batchnorm(network: nn.Module) -> int:
    """Fold every BatchNorm of ``network`` that follows one convolution (transposed ones too), in place.

    A network that torch.fx can't trace stays as it is.

    Returns:
        How many were folded.
    """
    network.eval()
    try:
        graph = fx.Tracer().trace(network)
    except Exception as error:  # tracing runs the network's own Python, which may raise anything
        logger.debug("BatchNorm is not folded, since the network can't be traced: %s", error)
        return 0
    modules = dict(network.named_modules())
    folded = 0
    for node in graph.nodes:
        source = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        convolution, norm = modules[str(source.target)], modules[str(node.target)]
        # Of exactly this class: timm's subclasses apply an activation, too.
        if type(norm) is not nn.BatchNorm2d or not isinstance(convolution, nn.Conv2d | nn.ConvTranspose2d):
            continue
        if len(source.users) > 1:
            continue
        network.set_submodule(str(source.target), _folded(convolution, norm))
        network.set_submodule(str(node.target), nn.Identity())
        folded += 1
    return folded


def _folded(convolution: Convolution, norm: nn.BatchNorm2d) -> Convolution:
    """Not torch's ``fuse_conv_bn_eval``, which deep-copies the convolution: fake tensors can't be."""
    folded = with_own_members(convolution)
    folded.weight, bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        cast(Tensor, norm.running_mean),
        cast(Tensor, norm.running_var),
        norm.eps,
        norm.weight,
        norm.bias,
        transpose=isinstance(convolution, nn.ConvTranspose2d),
    )
    folded.bias = bias
    return folded
