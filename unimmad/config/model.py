"""The section ``model`` of UniMMAD: sizes of the network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from unimmad.config.fields import Blocks, Integer, Positive, Real
from unimmad.config.levels import MOST_LEVELS, LevelSettings

CHANNELS_PER_MODALITY = 3

KernelSize = Annotated[Integer, Field(gt=0, le=63)]


class ModelSettings(LevelSettings):
    """METHOD: sizes of the network. Defaults are the paper's."""

    image_size: Positive = 256
    """Height and width of every image; the learned input embedding ties a model to it. A multiple of 32, or of a vision
    transformer's patches."""
    modality_slots: Positive = 4
    """Images of a sample at most; each slot is three input channels."""
    encoder: Literal["trained", "frozen"] = "trained"
    """``frozen``: the encoder, which looks at all modalities together, stays the copy of the teacher that it begins as
    (the paper trains it)."""
    encoder_batchnorm: Literal["batch", "frozen"] = "batch"
    """``frozen``: the encoder's BatchNorm stays as loaded (for weights with folded BatchNorm)."""
    fcm_dim: Positive = 512
    """Channels at which the feature compression module joins the levels."""
    bottleneck_dim: Positive = 2048
    """Channels of the compression module's narrowest map, at stride 32 (with a vision transformer: 4 times the finest
    stride, or twice the coarsest where that is more)."""
    decoder_planes: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=MOST_LEVELS)] = (256, 128, 64)
    """Planes of the decoder's stages, one for each level, the coarsest first; each gives 4 times as many channels."""
    decoder_blocks: Annotated[tuple[Blocks, ...], Field(min_length=1, max_length=MOST_LEVELS)] = (3, 4, 6)
    """Bottleneck blocks of each of the decoder's stages; at least one for each doubling of the map in it."""
    embed_dim: Annotated[Integer, Field(gt=0, le=8192)] = 256
    """Channels of the maps inside C-MoE."""
    kernel_sizes: Annotated[tuple[KernelSize, ...], Field(min_length=1, max_length=8)] = (1, 3, 5)
    """Kernel sizes of the MiMoE branches, one branch each; odd."""
    leaders: Positive = 32
    """Leader experts of a branch, the experts that the gate routes to."""
    base_experts: Positive = 8
    """Base kernels of a bank, which its leaders mix."""
    top_k: Positive = 2
    """Leaders that a token is routed to."""
    banks: Positive = 1
    """Banks of base kernels a level and kernel size; leader l mixes from bank l // (leaders / banks)."""
    initial_leader_std: Annotated[Real, Field(ge=0, le=100)] = 0.02
    """Standard deviation of the leaders' logits at the start. At the paper's 0.02 all leaders begin almost equal; short
    training gains from leaders that differ from the start."""
    initial_output_bias: Annotated[Real, Field(ge=-100, le=100)] = 0.0
    """Shift of the reconstruction's last GroupNorm at the start (the paper: 0). Above 0 fewer values begin cut off by
    the ReLU behind it, which suits the dense features of a backbone without weights."""

    initial_embedding: Literal["random", "sum"] = "random"
    """What the input embedding gives at the start: a random mixture of a sample's images (the paper), or their ``sum``,
    which an encoder that knows natural images can read."""
    decoder_output: Literal["whole", "residual"] = "whole"
    """What C-MoE gives: the reconstruction (``whole``, the paper), or what is added to the shared features
    (``residual``), nothing but ``initial_output_bias`` at the start."""

    @property
    def expert_counts(self) -> tuple[int, ...]:
        """Several banks live with their leaders; a single one is dense, the same on every rank."""
        return (self.leaders, self.banks) if self.banks > 1 else (self.leaders,)

    @model_validator(mode="after")
    def _check(self) -> ModelSettings:
        if self.backbone_kind == "convolutional" and self.image_size % 32:
            raise ValueError(f"image_size {self.image_size} is not a multiple of 32")
        for key in ("decoder_planes", "decoder_blocks"):
            if len(given := getattr(self, key)) != self.level_count:
                raise ValueError(f"{key} {list(given)} must be one number for each of the {self.level_count} levels")
        if self.top_k > self.leaders:
            raise ValueError(f"top_k {self.top_k} is more than leaders {self.leaders}")
        if self.leaders % self.banks:
            raise ValueError(f"leaders {self.leaders} can't be shared evenly among banks {self.banks}")
        if any(size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes {self.kernel_sizes} must be odd")
        return self
