"""What the section ``model`` of every method's recipe has."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from unimmad.config.fields import Integer, Section


def _of_timms_list(name: str) -> str:
    """With ``hf-hub:`` and ``local-dir:`` timm would fetch and build what another place says."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise ValueError("name a network of timm's own list; weights of another come by model.backbone_weights=FILE")
    return name


BackboneKind = Literal["convolutional", "transformer"]

TimmName = Annotated[str, AfterValidator(_of_timms_list)]

PositionResampling = Literal["dinov2", "timm"]
"""How a vision transformer's position embeddings come to another grid, both bicubic: ``dinov2`` as that network's
authors do, by the factor (grid + 0.1) / (grid of the weights); ``timm`` with antialiasing, by the two grids' ratio."""


MAX_IMAGE_SIZE = 8192
"""Pixels a side; what is built for it may grow with its square."""


class MethodSettings(Section):
    """The part that the rest of the package may read whatever the method."""

    image_size: Annotated[Integer, Field(gt=0, le=MAX_IMAGE_SIZE)] = 256
    """Height and width of every image."""
    modality_slots: Annotated[Integer, Field(gt=0, le=64)] = 4
    """Images of a sample at most."""
    backbone: TimmName
    """A network of timm's own list."""
    backbone_weights: str = "imagenet"
    """``imagenet`` (timm's; training stops where they can't be had), ``imagenet-or-none``, ``none``, or a file (.pth,
    .safetensors)."""

    @property
    def backbone_kind(self) -> BackboneKind:
        """What ``backbone`` must be."""
        return "convolutional"

    @property
    def expert_counts(self) -> tuple[int, ...]:
        """Experts, and whatever else lives with them, which are spread evenly over the ranks of an expert-parallel
        group; empty for a method without experts."""
        return ()
