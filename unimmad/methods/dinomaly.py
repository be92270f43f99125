"""Dinomaly (Guo et al., CVPR 2025): a noisy bottleneck and linear attention rebuild a vision transformer's tokens.

Letters: T tokens (sample, modality; an image here), N tokens of an image (class, registers, patches), P patches, D
channels, h heads of d channels, g x g patches, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.config.fields import NotNegative, Real
from unimmad.methods.level_cosines import distance_map, level_losses
from unimmad.methods.token_groups import (
    DECODER_NORM_EPS,
    MLP_RATIO,
    GroupedFeatures,
    Mlp,
    TokenGroupMethod,
    TokenGroupSettings,
    init_small,
    join_heads,
    split_heads,
    with_gradient_times,
)
from unimmad.model.anomaly_map import cosine_distance
from unimmad.model.method import StepFacts

EASY_GRADIENT = 0.1
"""What is left of the gradient where the reconstruction is good already."""


class DinomalySettings(TokenGroupSettings):
    """Sizes and mining; defaults are the authors' for MVTec-AD and VisA."""

    dropout: Annotated[Real, Field(ge=0, lt=1)] = 0.2
    """Of the bottleneck, before, within and behind its two layers (the authors' for Real-IAD: 0.4)."""
    easy_share: Annotated[Real, Field(ge=0, lt=1)] = 0.9
    """Share of places, those of the smallest distances, whose gradient is cut to a tenth."""
    easy_share_steps: NotNegative = 1000
    """Optimizer steps over which that share grows from 0."""


class Dinomaly(TokenGroupMethod[GroupedFeatures]):
    """Frozen teacher, bottleneck, decoder."""

    settings: DinomalySettings

    def __init__(self, settings: DinomalySettings) -> None:
        """The method with random weights.

        Raises:
            ValueError: the backbone does not exist, has too few blocks, or its patches do not tile the image.
        """
        super().__init__(settings)
        dim, heads = self.teacher.dim, self.teacher.heads
        self.bottleneck = NoisyBottleneck(dim, settings.dropout)
        self.decoder = nn.ModuleList(DecoderBlock(dim, heads) for _ in settings.blocks)
        self.bottleneck.apply(init_small)
        self.decoder.apply(init_small)

    def compare(self, images_TCHW: Tensor) -> GroupedFeatures:
        targets = self.teacher(images_TCHW)
        patches_TPD = torch.stack([target.patches_NPD for target in targets]).mean(dim=0)
        prefix_TRD = torch.stack([target.prefix_NRD for target in targets]).mean(dim=0)
        tokens_TND = self.bottleneck(torch.cat([prefix_TRD, patches_TPD], dim=1))
        decoded = []
        for block in self.decoder:
            tokens_TND = block(tokens_TND)
            decoded.append(tokens_TND[:, prefix_TRD.shape[1] :])
        return GroupedFeatures(
            self.group_means([target.patches_NPD for target in targets]), self.group_means(decoded[::-1])
        )

    def token_losses(self, compared: GroupedFeatures, facts: StepFacts) -> Tensor:
        share = self._easy_share(facts.step)
        decoder = [
            with_gradient_times(decoded_TDgg, _easy_places_less(target_TDgg, decoded_TDgg, share, facts.global_sum))
            for target_TDgg, decoded_TDgg in zip(compared.teacher, compared.decoder, strict=True)
        ]
        return level_losses(compared.teacher, decoder).mean(dim=1)

    def token_maps(self, compared: GroupedFeatures) -> Tensor:
        return distance_map(compared.teacher, compared.decoder, self.image_size) / len(self.groups)

    def _easy_share(self, step: int) -> float:
        final, steps = self.settings.easy_share, self.settings.easy_share_steps
        return final if step >= steps else final * step / steps


class NoisyBottleneck(nn.Module):
    """Two layers without residual; dropout is the noise that the decoder has to undo."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(dim, dim * MLP_RATIO)
        self.fc2 = nn.Linear(dim * MLP_RATIO, dim)

    def forward(self, tokens_TND: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(self.dropout(tokens_TND)))
        return self.dropout(self.fc2(self.dropout(hidden)))


class DecoderBlock(nn.Module):
    """A transformer block with linear attention."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=DECODER_NORM_EPS)
        self.attn = LinearAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=DECODER_NORM_EPS)
        self.mlp = Mlp(dim)

    def forward(self, tokens_TND: Tensor) -> Tensor:
        tokens_TND = tokens_TND + self.attn(self.norm1(tokens_TND))
        return tokens_TND + self.mlp(self.norm2(tokens_TND))


class LinearAttention(nn.Module):
    """Attention with elu + 1 in place of the softmax, whose cost grows with N, not with its square."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens_TND: Tensor) -> Tensor:
        queries, keys, values_ThNd = (split_heads(part, self.heads) for part in self.qkv(tokens_TND).chunk(3, dim=2))
        queries_ThNd, keys_ThNd = F.elu(queries) + 1, F.elu(keys) + 1
        summed_Thdd = keys_ThNd.transpose(2, 3) @ values_ThNd
        weights_ThN1 = queries_ThNd @ keys_ThNd.sum(dim=2).unsqueeze(3)
        return self.proj(join_heads(queries_ThNd @ summed_Thdd / weights_ThN1))


@torch.no_grad()
def _easy_places_less(
    target_TDgg: Tensor, decoded_TDgg: Tensor, easy_share: float, global_sum: Callable[[Tensor], Tensor]
) -> Tensor:
    """What to multiply the gradient with: a tenth where the distance is among the smallest of the global batch."""
    distance_Tgg = cosine_distance(target_TDgg, decoded_TDgg)
    places = global_sum(torch.tensor(distance_Tgg.numel(), device=distance_Tgg.device))
    hard = (places.double() * (1 - easy_share)).long().clamp_min(1)
    threshold = largest_at(distance_Tgg, hard, global_sum)
    return torch.where(distance_Tgg < threshold, EASY_GRADIENT, 1.0)


def largest_at(values: Tensor, place: Tensor, global_sum: Callable[[Tensor], Tensor]) -> Tensor:
    """The ``place``-th largest (from 1) of all ranks' float32 ``values``, none of them negative: a scalar.

    Such numbers are in the order of their bits, of which eight at a time are settled by counting.
    """
    bits = values.flatten().view(torch.int32).long()
    found = bits.new_zeros(())
    for shift in (24, 16, 8, 0):
        candidates = (bits >> shift + 8) == found
        digits = (bits >> shift) & 255
        counts = global_sum(bits.new_zeros(256).index_add(0, digits, candidates.long()))
        at_least = counts.flip(0).cumsum(0).flip(0)
        digit = (at_least >= place).sum() - 1
        place = place - (at_least[digit] - counts[digit])
        found = found * 256 + digit
    return found.to(torch.int32).view(torch.float32)
