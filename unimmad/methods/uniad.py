"""UniAD (You et al., NeurIPS 2022): a transformer rebuilds a frozen backbone's features from disturbed ones.

No token may look at itself or its neighbours, and the decoder's layers ask by learned queries, so that copying is not
an answer.

Letters: T tokens (sample, modality), C channels of all maps together, h x w positions of the grid, P = h w positions
as a row, E hidden channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.config.fields import Blocks, Positive, Real
from unimmad.config.method import MethodSettings, TimmName
from unimmad.methods.frozen_teacher import FrozenTeacherMethod
from unimmad.model.backbone import Backbone
from unimmad.model.method import StepFacts

STATICALLY_PADDED = ("tf_efficientnet_b4", "blocks.2.0.conv_dw", 2)
"""Network, its convolution and the pixels that the authors' port of it pads on every side, at any image size. timm's
depend on the size; at 224 and 256 pixels they differ for this convolution alone."""


MAX_GRID = 128
"""Of positions a side: attention is between all of them."""


class UniADSettings(MethodSettings):
    """Sizes of the network; the defaults are the authors' (for 224 pixels)."""

    image_size: Positive = 224
    """Height and width of every image; a multiple of the last stride."""
    backbone: TimmName = "tf_efficientnet_b4.aa_in1k"
    """A network of timm's own list with features at ``strides``."""
    strides: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=8)] = (2, 4, 8, 16)
    """Of the backbone's maps, finest first; all are brought to the last one's grid."""
    static_padding: bool = True
    """Whether EfficientNet-b4 (tf_efficientnet_b4) pads as the authors' port of it; False leaves timm's padding. Other
    backbones are as timm's."""
    hidden_dim: Positive = 256
    """Channels inside the transformer; a multiple of 2 and of ``heads``."""
    heads: Positive = 8
    """Attention heads."""
    encoder_layers: Blocks = 4
    """Layers of the encoder."""
    decoder_layers: Blocks = 4
    """Layers of the decoder, each with queries of its own."""
    feedforward_dim: Positive = 1024
    """Channels of a layer's inner linear map."""
    dropout: Annotated[Real, Field(ge=0, lt=1)] = 0.1
    """Share of values that are dropped in training."""
    neighbour_window: Positive = 7
    """Side of the square of positions around its own that no token sees; odd, and smaller than the grid."""
    jitter_scale: Annotated[Real, Field(ge=0)] = 20.0
    """How much noise disturbs the features in training: its standard deviation is this times the token's length over
    its channels. 0 is none."""

    @model_validator(mode="after")
    def _check(self) -> UniADSettings:
        if any(coarser <= finer for finer, coarser in zip(self.strides, self.strides[1:], strict=False)):
            raise ValueError(f"strides {self.strides} must increase")
        if self.image_size % self.strides[-1]:
            raise ValueError(f"image_size {self.image_size} is not a multiple of the last of strides {self.strides}")
        if self.hidden_dim % 2 or self.hidden_dim % self.heads:
            raise ValueError(f"hidden_dim {self.hidden_dim} is not a multiple of 2 and of heads {self.heads}")
        if self.grid > MAX_GRID:
            raise ValueError(
                f"image_size {self.image_size} makes a grid of {self.grid} x {self.grid}; attention between all of its "
                f"positions is for {MAX_GRID} x {MAX_GRID} at most"
            )
        if self.neighbour_window % 2 == 0:
            raise ValueError(f"neighbour_window {self.neighbour_window} must be odd")
        if self.neighbour_window >= self.grid:
            raise ValueError(
                f"neighbour_window {self.neighbour_window} leaves some token nothing to see: the grid (image_size over "
                f"the last of strides) is {self.grid} x {self.grid}"
            )
        return self

    @property
    def grid(self) -> int:
        """Rows and columns of positions."""
        return self.image_size // self.strides[-1]


@dataclass(frozen=True)
class Features:
    """What is compared: [T, C, h, w] each."""

    aligned_TChw: Tensor
    """The teacher's, of all strides on one grid."""
    rebuilt_TChw: Tensor


class UniAD(FrozenTeacherMethod[Features]):
    """Teacher, neck without weights, transformer."""

    settings: UniADSettings

    def __init__(self, settings: UniADSettings) -> None:
        """The method with random weights.

        Raises:
            ValueError: the backbone does not exist or has no features at these strides.
        """
        teacher = Backbone(settings.backbone, settings.strides, rectified=False, without_rest=True)
        if settings.static_padding:
            pad_statically(teacher)
        super().__init__(settings, teacher)
        self.reconstruction = Reconstruction(sum(teacher.channels), settings)

    def compare(self, images_TCHW: Tensor) -> Features:
        aligned_TChw = self.aligned_features(images_TCHW)
        return Features(aligned_TChw, self.rebuild(aligned_TChw))

    def aligned_features(self, images_TCHW: Tensor) -> Tensor:
        """The teacher's maps, all resized to the grid: [T, C, h, w]."""
        size = (self.settings.grid, self.settings.grid)
        maps = [
            F.interpolate(features, size=size, mode="bilinear", align_corners=True)
            for features in self.teacher_maps(images_TCHW)
        ]
        return torch.cat(maps, dim=1)

    def rebuild(self, aligned_TChw: Tensor) -> Tensor:
        """[T, C, h, w] -> the same; in training from disturbed features."""
        tokens_TPC = aligned_TChw.flatten(2).transpose(1, 2)
        if self.training and self.settings.jitter_scale:
            tokens_TPC = jittered(tokens_TPC, torch.randn_like(tokens_TPC), self.settings.jitter_scale)
        return self.reconstruction(tokens_TPC).transpose(1, 2).reshape_as(aligned_TChw)

    def token_losses(self, compared: Features, facts: StepFacts) -> Tensor:
        """The mean squared difference."""
        return _squares(compared).mean(dim=(1, 2, 3))

    def token_maps(self, compared: Features) -> Tensor:
        """The length of the difference along channels, brought to H x W."""
        lengths_Thw = _squares(compared).sum(dim=1).sqrt()
        size = (self.image_size, self.image_size)
        return F.interpolate(lengths_Thw[:, None], size=size, mode="bilinear", align_corners=True)[:, 0]


def _squares(compared: Features) -> Tensor:
    return (compared.rebuilt_TChw.float() - compared.aligned_TChw.float()).square()


def pad_statically(backbone: Backbone) -> None:
    """Give the one convolution of ``STATICALLY_PADDED`` its padding, in place; another network stays as it is."""
    network, name, padding = STATICALLY_PADDED
    if backbone.name.partition(".")[0] != network:
        return
    timms = backbone.network.get_submodule(name)
    ours = nn.Conv2d(
        timms.in_channels,
        timms.out_channels,
        timms.kernel_size,
        timms.stride,
        padding,
        groups=timms.groups,
        bias=False,
    )
    ours.weight = timms.weight
    backbone.network.set_submodule(name, ours)


def jittered(tokens_TPC: Tensor, noise_TPC: Tensor, scale: float) -> Tensor:
    """Tokens with normal noise in proportion to their length."""
    length_TP1 = tokens_TPC.norm(dim=2, keepdim=True)
    return tokens_TPC + noise_TPC * (length_TP1 / tokens_TPC.shape[2] * scale)


def neighbour_mask(side: int, window: int) -> Tensor:
    """Whether a position lies in the square of ``window`` positions around another one: bool [P, P]."""
    places = torch.arange(side)
    near_ss = (places[:, None] - places).abs() <= window // 2
    return (near_ss[:, None, :, None] & near_ss[None, :, None, :]).view(side**2, side**2)


class Reconstruction(nn.Module):
    """The transformer: [T, P, C] -> the same."""

    blocked_PP: Tensor

    def __init__(self, channels: int, settings: UniADSettings) -> None:
        super().__init__()
        dim = settings.hidden_dim
        self.row_embedding = nn.Parameter(torch.rand(settings.grid, dim // 2))
        self.column_embedding = nn.Parameter(torch.rand(settings.grid, dim // 2))
        self.input_projection = nn.Linear(channels, dim)
        self.encoder = nn.ModuleList([EncoderLayer(settings) for _ in range(settings.encoder_layers)])
        self.decoder = nn.ModuleList([DecoderLayer(settings) for _ in range(settings.decoder_layers)])
        self.norm = nn.LayerNorm(dim)
        self.output_projection = nn.Linear(dim, channels)
        self.register_buffer("blocked_PP", neighbour_mask(settings.grid, settings.neighbour_window), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens_TPC: Tensor) -> Tensor:
        return self.output_projection(self.decode(self.encode(tokens_TPC)))

    def positions(self) -> Tensor:
        """Each position's column's embedding, then its row's: [P, E]."""
        columns_hwE = self.column_embedding.expand(len(self.row_embedding), -1, -1)
        rows_hwE = self.row_embedding[:, None].expand(-1, len(self.column_embedding), -1)
        return torch.cat([columns_hwE, rows_hwE], dim=2).flatten(0, 1)

    def encode(self, tokens_TPC: Tensor) -> Tensor:
        """[T, P, C] -> [T, P, E]."""
        x_TPE = self.input_projection(tokens_TPC)
        position_PE = self.positions()
        for layer in self.encoder:
            x_TPE = layer(x_TPE, position_PE, self.blocked_PP)
        return x_TPE

    def decode(self, memory_TPE: Tensor) -> Tensor:
        """[T, P, E] -> the same; every layer asks by its own queries for what the layer before it gives."""
        position_PE = self.positions()
        x_TPE = memory_TPE
        for layer in self.decoder:
            x_TPE = layer(x_TPE, memory_TPE, position_PE, self.blocked_PP)
        return self.norm(x_TPE)


class Attention(nn.Module):
    """Multi-head attention in which queries and keys, and not values, know their positions."""

    def __init__(self, settings: UniADSettings) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(
            settings.hidden_dim, settings.heads, dropout=settings.dropout, batch_first=True
        )
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, asking_TPE: Tensor, seen_TPE: Tensor, position_PE: Tensor, blocked_PP: Tensor) -> Tensor:
        attended_TPE, _ = self.heads(
            asking_TPE + position_PE, seen_TPE + position_PE, seen_TPE, attn_mask=blocked_PP, need_weights=False
        )
        return self.dropout(attended_TPE)


def _feedforward(settings: UniADSettings) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(settings.hidden_dim, settings.feedforward_dim),
        nn.ReLU(inplace=True),
        nn.Dropout(settings.dropout),
        nn.Linear(settings.feedforward_dim, settings.hidden_dim),
        nn.Dropout(settings.dropout),
    )


class EncoderLayer(nn.Module):
    """Attention to all but the neighbours, then two linear maps, each added and normalised."""

    def __init__(self, settings: UniADSettings) -> None:
        super().__init__()
        self.attention = Attention(settings)
        self.norm1 = nn.LayerNorm(settings.hidden_dim)
        self.feedforward = _feedforward(settings)
        self.norm2 = nn.LayerNorm(settings.hidden_dim)

    def forward(self, x_TPE: Tensor, position_PE: Tensor, blocked_PP: Tensor) -> Tensor:
        x_TPE = self.norm1(x_TPE + self.attention(x_TPE, x_TPE, position_PE, blocked_PP))
        return self.norm2(x_TPE + self.feedforward(x_TPE))


class DecoderLayer(nn.Module):
    """Learned queries look at the encoder's output, then at the layer's before."""

    def __init__(self, settings: UniADSettings) -> None:
        super().__init__()
        self.queries_PE = nn.Parameter(torch.randn(settings.grid**2, settings.hidden_dim))
        self.to_memory = Attention(settings)
        self.norm1 = nn.LayerNorm(settings.hidden_dim)
        self.to_previous = Attention(settings)
        self.norm2 = nn.LayerNorm(settings.hidden_dim)
        self.feedforward = _feedforward(settings)
        self.norm3 = nn.LayerNorm(settings.hidden_dim)

    def forward(self, previous_TPE: Tensor, memory_TPE: Tensor, position_PE: Tensor, blocked_PP: Tensor) -> Tensor:
        queries_TPE = self.queries_PE.expand_as(memory_TPE)
        x_TPE = self.norm1(queries_TPE + self.to_memory(queries_TPE, memory_TPE, position_PE, blocked_PP))
        x_TPE = self.norm2(x_TPE + self.to_previous(x_TPE, previous_TPE, position_PE, blocked_PP))
        return self.norm3(x_TPE + self.feedforward(x_TPE))
