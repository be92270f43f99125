"""What the section ``model`` of every method's recipe has."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator

from unimmad.config.fields import Positive, Section


def _of_timms_list(name: str) -> str:
    """With ``hf-hub:`` and ``local-dir:`` timm would fetch and build what another place says."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise ValueError("name a network of timm's own list; weights of another come by model.backbone_weights=FILE")
    return name


TimmName = Annotated[str, AfterValidator(_of_timms_list)]


class MethodSettings(Section):
    """The part that the rest of the package may read whatever the method."""

    backbone_kind: ClassVar[Literal["convolutional", "transformer"]] = "convolutional"
    """What ``backbone`` must be."""

    image_size: Positive = 256
    """Height and width of every image."""
    modality_slots: Positive = 4
    """Images of a sample at most."""
    backbone: TimmName
    """A network of timm's own list."""
    backbone_weights: str = "imagenet"
    """``imagenet`` (timm's; training stops where they can't be had), ``imagenet-or-none``, ``none``, or a file (.pth,
    .safetensors)."""

    @property
    def expert_counts(self) -> tuple[int, ...]:
        """Experts, and whatever else lives with them, which are spread evenly over the ranks of an expert-parallel
        group; empty for a method without experts."""
        return ()
