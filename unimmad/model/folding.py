"""BatchNorm taken into the convolution before it: the same numbers of a network that no longer trains."""

from __future__ import annotations

import logging

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

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
        transposed = isinstance(convolution, nn.ConvTranspose2d)
        network.set_submodule(str(source.target), fuse_conv_bn_eval(convolution, norm, transposed))
        network.set_submodule(str(node.target), nn.Identity())
        folded += 1
    return folded
