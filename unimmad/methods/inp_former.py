"""INP-Former (Luo et al., CVPR 2025): an image's tokens are rebuilt from a few prototypes drawn from the image itself.

Letters: T tokens (sample, modality; an image here), P patches of an image, M prototypes, D channels, h heads of d
channels, g x g patches, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.config.fields import Positive, Real
from unimmad.methods.level_cosines import distance_map, level_losses
from unimmad.methods.token_groups import (
    DECODER_NORM_EPS,
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


class INPFormerSettings(TokenGroupSettings):
    """Prototypes and loss; defaults are the authors'."""

    prototypes: Positive = 6
    """Of each image, the intrinsic normal prototypes."""
    gather_weight: Annotated[Real, Field(ge=0)] = 0.2
    """Of the loss that keeps every patch near a prototype."""
    mining_power: Annotated[Real, Field(ge=0)] = 3.0
    """The gradient at each place is multiplied by this power of its distance over the mean distance."""


@dataclass(frozen=True)
class Rebuilt:
    """What a forward pass gives."""

    features: GroupedFeatures
    patches_TPD: Tensor
    """The teacher's, averaged over the targets."""
    prototypes_TMD: Tensor


class INPFormer(TokenGroupMethod[Rebuilt]):
    """Frozen teacher, prototype extractor, bottleneck, decoder. Class and register tokens have no part in it."""

    settings: INPFormerSettings

    def __init__(self, settings: INPFormerSettings) -> None:
        """The method with random weights.

        Raises:
            ValueError: the backbone does not exist, has too few blocks, or its patches do not tile the image.
        """
        super().__init__(settings)
        dim, heads = self.teacher.dim, self.teacher.heads
        self.prototypes_MD = nn.Parameter(torch.randn(settings.prototypes, dim))
        self.extractor = PrototypeExtractor(dim, heads)
        self.bottleneck = Mlp(dim)
        self.decoder = nn.ModuleList(DecoderBlock(dim, heads) for _ in settings.blocks)
        for part in (self.extractor, self.bottleneck, self.decoder):
            part.apply(init_small)

    def compare(self, images_TCHW: Tensor) -> Rebuilt:
        targets = [tokens.patches_NPD for tokens in self.teacher(images_TCHW)]
        patches_TPD = torch.stack(targets).mean(dim=0)
        # Not len(), of which an exported program would make a constant.
        prototypes_TMD = self.extractor(self.prototypes_MD.expand(patches_TPD.shape[0], -1, -1), patches_TPD)
        tokens_TPD = self.bottleneck(patches_TPD)
        decoded = []
        for block in self.decoder:
            tokens_TPD = block(tokens_TPD, prototypes_TMD)
            decoded.append(tokens_TPD)
        features = GroupedFeatures(self.group_means(targets), self.group_means(decoded[::-1]))
        return Rebuilt(features, patches_TPD, prototypes_TMD)

    def token_losses(self, compared: Rebuilt, facts: StepFacts) -> Tensor:
        teacher, power = compared.features.teacher, self.settings.mining_power
        decoder = [
            with_gradient_times(decoded_TDgg, _hard_places_more(target_TDgg, decoded_TDgg, power, facts.global_sum))
            for target_TDgg, decoded_TDgg in zip(teacher, compared.features.decoder, strict=True)
        ]
        distances_TPM = prototype_distances(compared.patches_TPD, compared.prototypes_TMD)
        gather_T = distances_TPM.min(dim=2).values.mean(dim=1)
        return level_losses(teacher, decoder).mean(dim=1) + self.settings.gather_weight * gather_T

    def token_maps(self, compared: Rebuilt) -> Tensor:
        return distance_map(compared.features.teacher, compared.features.decoder, self.image_size) / len(self.groups)


class PrototypeExtractor(nn.Module):
    """A transformer block in which the prototypes look at the image's patches."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=DECODER_NORM_EPS)
        self.attn = PatchAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=DECODER_NORM_EPS)
        self.mlp = Mlp(dim)

    def forward(self, prototypes_TMD: Tensor, patches_TPD: Tensor) -> Tensor:
        # Both go through the same normalisation.
        prototypes_TMD = prototypes_TMD + self.attn(self.norm1(prototypes_TMD), self.norm1(patches_TPD))
        return prototypes_TMD + self.mlp(self.norm2(prototypes_TMD))


class CrossProjections(nn.Module):
    """Queries of one set of tokens, keys and values of another, and the layer behind the attention between them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def queries(self, tokens: Tensor) -> Tensor:
        """[T, h, tokens, d]."""
        return split_heads(self.q(tokens), self.heads)

    def keys_and_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[T, h, tokens, d] each."""
        keys, values = self.kv(tokens).chunk(2, dim=2)
        return split_heads(keys, self.heads), split_heads(values, self.heads)


class PatchAttention(CrossProjections):
    """Softmax attention of prototypes to patches."""

    def forward(self, prototypes_TMD: Tensor, patches_TPD: Tensor) -> Tensor:
        keys_ThPd, values_ThPd = self.keys_and_values(patches_TPD)
        attended = F.scaled_dot_product_attention(self.queries(prototypes_TMD), keys_ThPd, values_ThPd)
        return self.proj(join_heads(attended))


class DecoderBlock(nn.Module):
    """A transformer block without a way around its attention: what comes out is made of prototypes alone."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=DECODER_NORM_EPS)
        self.attn = PrototypeAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=DECODER_NORM_EPS)
        self.mlp = Mlp(dim)

    def forward(self, tokens_TPD: Tensor, prototypes_TMD: Tensor) -> Tensor:
        tokens_TPD = self.attn(self.norm1(tokens_TPD), self.norm1(prototypes_TMD))
        return tokens_TPD + self.mlp(self.norm2(tokens_TPD))


class PrototypeAttention(CrossProjections):
    """Attention of patches to prototypes, weighted by the positive part of their cosine, which need not sum to 1."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.learn_scale = nn.Parameter(torch.ones(heads, 1, 1))

    def forward(self, tokens_TPD: Tensor, prototypes_TMD: Tensor) -> Tensor:
        keys_ThMd, values_ThMd = self.keys_and_values(prototypes_TMD)
        weights_ThPM = self.weights(self.queries(tokens_TPD), keys_ThMd)
        return self.proj(join_heads(weights_ThPM @ values_ThMd))

    def weights(self, queries_ThPd: Tensor, keys_ThMd: Tensor) -> Tensor:
        cosines_ThPM = F.normalize(queries_ThPd, dim=3) @ F.normalize(keys_ThMd, dim=3).transpose(2, 3)
        return F.relu(cosines_ThPM * self.learn_scale)


def prototype_distances(patches_TPD: Tensor, prototypes_TMD: Tensor) -> Tensor:
    """1 - cosine between every patch and every prototype of its image, in float32: [T, P, M]."""
    patches_TPD, prototypes_TMD = (F.normalize(part.float(), dim=2) for part in (patches_TPD, prototypes_TMD))
    return 1 - patches_TPD @ prototypes_TMD.transpose(1, 2)


@torch.no_grad()
def _hard_places_more(
    target_TDgg: Tensor, decoded_TDgg: Tensor, power: float, global_sum: Callable[[Tensor], Tensor]
) -> Tensor:
    """What to multiply the gradient with: a power of the distance over its mean in the global batch."""
    distance_Tgg = cosine_distance(target_TDgg, decoded_TDgg)
    total, places = global_sum(torch.stack([distance_Tgg.sum(), distance_Tgg.new_tensor(distance_Tgg.numel())]))
    return (distance_Tgg * (places / total)).pow(power)
