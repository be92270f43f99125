"""BatchNorm taken into the convolution before it: the same numbers of a network that no longer trains."""

from __future__ import annotations

import logging
from typing import cast

from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from unimmad.model.backends.private_torch import with_own_members

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
