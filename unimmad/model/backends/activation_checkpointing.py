"""Activations computed again in the backward pass instead of kept: less memory, more time, same numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from unimmad.model.backbone import LevelNetwork
from unimmad.model.blocks import BasicBlock, DecoderBottleneck
from unimmad.model.cross_moe import CrossCondition, MiMoEBranch
from unimmad.model.unimmad import InputEmbedding


def recompute_activations(model: nn.Module) -> int:
    """From now on every block of ``model`` that is trained keeps only its inputs; in place.

    Blocks are the input embedding's, those of a trained backbone's stages and of the compression, and the parts of
    C-MoE. A branch whose leaders live on other ranks stays as it is: its exchange with them happens once.

    Returns:
        How many blocks.
    """
    blocks: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, LevelNetwork) and any(parameter.requires_grad for parameter in module.parameters()):
            blocks += [block for stage in module.network.children() for block in _blocks(stage)]
        elif isinstance(module, InputEmbedding):
            blocks.append(module.stem)
        elif isinstance(module, BasicBlock | DecoderBottleneck | CrossCondition) or (
            isinstance(module, MiMoEBranch) and module.routed.leaders_are_here
        ):
            blocks.append(module)
    for block in blocks:
        # On the instance: a wrapper would change the names of parameters, which checkpoints rely on.
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=partial(_contexts, block))
    return len(blocks)


def _blocks(stage: nn.Module) -> list[nn.Module]:
    """The blocks of a backbone's plain sequence.

    Subclasses may change the lists that they pass on, and a lone layer may be followed by one that works in place: what
    would be computed again from their inputs is something else.
    """
    if type(stage) not in (nn.Sequential, nn.ModuleList):
        return []
    return [block for block in stage.children() if any(True for _ in block.children())]


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    """Around the forward pass, and around the recomputation."""
    return contextlib.nullcontext(), _statistics_kept(block)


@contextlib.contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """BatchNorm saw this batch in the forward pass: its running statistics must not take it in twice."""
    layers = [layer for layer in block.modules() if isinstance(layer, nn.BatchNorm2d) and layer.training]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
        layer.num_batches_tracked = None if layer.num_batches_tracked is None else layer.num_batches_tracked.clone()
    try:
        yield
    finally:
        for layer, (momentum, batches) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, batches
