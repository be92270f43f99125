"""C-MoE alone: a network whose maps are given, so that all it computes are its decoders.

Letters: B samples, T tokens, C channels of a level, h x w positions of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unimmad.config import ModelSettings
from unimmad.model.backends.private_torch import with_own_members
from unimmad.model.cross_moe import CrossMoE
from unimmad.model.unimmad import Reconstruction, UniMMAD, whole_batch


class Given(nn.Module):
    """Stands for a part of the network, and gives what it was given."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, *_: Any) -> Any:
        return self.value


def decoder_model(settings: ModelSettings, device: torch.device, levels: Sequence[int] | None = None) -> UniMMAD:
    """A model of which only the decoders of ``levels`` (0 is the finest; None: all) take memory; the rest is on
    ``meta``."""
    with torch.device("meta"):
        model = UniMMAD(settings)
    levels = range(settings.level_count) if levels is None else levels
    with device:
        model.levels = nn.ModuleList([CrossMoE(model.encoder.channels[level], settings) for level in levels])
    return model


def with_given_maps(network: Any, shared: Sequence[Tensor], teacher: Sequence[Tensor]) -> Any:
    """``network`` with given maps in place of all that comes before C-MoE; itself it stays as it is."""
    given = {"teacher": list(teacher), "input_embedding": torch.empty(0), "encoder": None, "compression": list(shared)}
    network = with_own_members(network)
    for name, value in given.items():
        assert isinstance(getattr(network, name), nn.Module)
        setattr(network, name, Given(value))
    network.split_batch = whole_batch  # what is given is the whole batch's
    network.folded_teacher = None
    return network


def invented_maps(
    model: UniMMAD, samples: int, tokens: int, device: torch.device, levels: Sequence[int] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Shared features [B, C, h, w] and teacher features [T, C, h, w] of each level, the same at every call."""
    generator = torch.Generator().manual_seed(1)
    shared, teacher = [], []
    for level in range(model.settings.level_count) if levels is None else levels:
        side = model.settings.image_size // model.encoder.strides[level]
        shape = (model.encoder.channels[level], side, side)
        shared.append(torch.randn(samples, *shape, generator=generator).to(device))
        teacher.append(torch.randn(tokens, *shape, generator=generator).relu().to(device))
    return shared, teacher


def joined_distances(output: Reconstruction) -> Tensor:
    """All levels' distances in one row: [n]."""
    return torch.cat([distance_Thw.flatten() for distance_Thw in output.distances])
