"""C-MoE, the decoder of one level (METHOD part 6): reconstructs each token's teacher features from the shared ones.

What depends on the sample only (key, the branches' inputs, the key half of the cross condition) is computed once a
sample, not once a token; so is the fixed expert, where it is not part of a token's composed kernel. All gates can
decide before any expert computes: ``route``, then ``reconstruct``. Tokens take their sample's map by ``index_select``,
since the gradient of plain indexing adds up in an order that changes from run to run, on CPUs too.

Letters: B samples, T tokens (sample, modality), C_l channels of the level, E embed channels, L leaders,
K routed leaders, J channels of all branches, h x w positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.model.backends.convolution import SameConvolution, plain_convolution
from unimmad.model.blocks import group_norm, pointwise
from unimmad.model.leaders import BaseKernelBank, LocalLeaders, convolve_tokens
from unimmad.model.routing import Gate, Routing

if TYPE_CHECKING:
    from unimmad.config import ModelSettings

TokenConvolution = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
"""As ``convolve_tokens``."""
LastConvolution = Callable[[Iterator[Tensor], nn.Conv2d], Tensor]
"""As ``over_joined_maps``."""


class CrossMoE(nn.Module):
    """All of one level: condition, branches, reconstruction."""

    def __init__(self, channels: int, settings: ModelSettings) -> None:
        super().__init__()
        embed_dim, kernel_sizes = settings.embed_dim, settings.kernel_sizes
        self.key = pointwise(channels, embed_dim)
        self.query = pointwise(channels, embed_dim)
        self.condition = CrossCondition(embed_dim)
        self.branches = nn.ModuleList([MiMoEBranch(size, settings) for size in kernel_sizes])
        self.out = pointwise(embed_dim * len(kernel_sizes), channels)
        output_norm = self.out[1]
        assert isinstance(output_norm, nn.GroupNorm)
        nn.init.constant_(output_norm.bias, settings.initial_output_bias)
        self.adds_to_shared = settings.decoder_output == "residual"
        if self.adds_to_shared:
            nn.init.zeros_(output_norm.weight)
        if self.adds_to_shared or settings.backbone_kind == "transformer":  # both signs
            self.out[2] = nn.Identity()
        self.convolve_last: LastConvolution = over_joined_maps

    def forward(
        self,
        shared_BChw: Tensor,
        teacher_TChw: Tensor,
        tokens_per_sample: Sequence[int],
        sample_of_token_T: Tensor,
    ) -> tuple[Tensor, list[Routing]]:
        """Reconstruction [T, C_l, h, w] of the teacher's features, and each branch's routing."""
        key_BEhw, routings = self.route(shared_BChw, teacher_TChw, sample_of_token_T)
        return self.reconstruct(shared_BChw, key_BEhw, routings, tokens_per_sample, sample_of_token_T), routings

    def route(
        self, shared_BChw: Tensor, teacher_TChw: Tensor, sample_of_token_T: Tensor
    ) -> tuple[Tensor, list[Routing]]:
        """The experts' input, key [B, E, h, w], and each branch's decision."""
        key_BEhw = self.key(shared_BChw)
        condition_TE = self.condition(key_BEhw, self.query(teacher_TChw), sample_of_token_T)
        return key_BEhw, [branch.routed.route(condition_TE) for branch in cast(list[MiMoEBranch], self.branches)]

    def reconstruct(
        self,
        shared_BChw: Tensor,
        key_BEhw: Tensor,
        routings: Sequence[Routing],
        tokens_per_sample: Sequence[int],
        sample_of_token_T: Tensor,
    ) -> Tensor:
        """What the routed experts make of the key, by itself or added to the shared features: [T, C_l, h, w]."""
        maps = (  # each made when it is asked for: at the finest level they are the largest there are
            branch(key_BEhw, routing, tokens_per_sample, sample_of_token_T)
            for branch, routing in zip(self.branches, routings, strict=True)
        )
        convolution, norm, activation = self.out
        output_TChw: Tensor = activation(norm(self.convolve_last(maps, cast(nn.Conv2d, convolution))))
        return output_TChw + shared_BChw.index_select(0, sample_of_token_T) if self.adds_to_shared else output_TChw


def over_joined_maps(maps: Iterator[Tensor], convolution: nn.Conv2d) -> Tensor:
    """The 1x1 over the channels of all branches, whose maps are [T, E, h, w] each: [T, C_l, h, w]."""
    return convolution(torch.cat(list(maps), dim=1))


class CrossCondition(nn.Module):
    """What the router sees of a token: key and query together, averaged over the map."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.join = nn.Conv2d(2 * embed_dim, embed_dim, 3, padding=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(embed_dim)
        self.group_norm = group_norm(embed_dim)
        self.mix = pointwise(embed_dim, embed_dim)
        self.convolve: SameConvolution = plain_convolution

    def forward(self, key_BEhw: Tensor, query_TEhw: Tensor, sample_of_token_T: Tensor) -> Tensor:
        """-> [T, E]. The 3x3 convolution is split so that its key half runs once a sample."""
        for_key, for_query = self.join.weight.chunk(2, dim=1)
        key_half_BEhw = self.convolve(key_BEhw, for_key)
        joined_TEhw = self.convolve(query_TEhw, for_query) + key_half_BEhw.index_select(0, sample_of_token_T)
        x_TEhw = self.group_norm(F.gelu(self.batch_norm(joined_TEhw))).relu()
        # In float32 whatever autocast says: the router must not flip with the precision.
        return self.mix(x_TEhw).float().mean(dim=(2, 3))


class RoutedExperts(Protocol):
    """Gate and leaders of a branch, in one process or on many ranks."""

    leaders_are_here: bool
    """Whether ``mixed_kernels`` can be asked; else the experts are called."""

    def route(self, condition_TE: Tensor) -> Routing:
        """The gate's decision."""

    def mixed_kernels(self, routing: Routing, kernels_GNEEkk: Tensor, projection_EE: Tensor | None = None) -> Tensor:
        """As ``mix_kernels``, of all tokens: [T, E, E, k, k]."""

    def __call__(self, x_BEhw: Tensor, routing: Routing, sample_of_token_T: Tensor, kernels_GNEEkk: Tensor) -> Tensor:
        """Routed output of every token, wherever its leaders live: [T, E, h, w]."""


class MiMoEBranch(nn.Module):
    """One kernel size: the fixed expert beside the routed leaders. ``routed`` has a local and a parallel form."""

    def __init__(self, kernel_size: int, settings: ModelSettings) -> None:
        super().__init__()
        embed_dim = settings.embed_dim
        self.kernel_size = kernel_size
        self.pre = pointwise(embed_dim, embed_dim)
        self.fixed_EEkk = nn.Parameter(torch.empty(embed_dim, embed_dim, kernel_size, kernel_size))
        nn.init.dirac_(self.fixed_EEkk)
        self.bank = BaseKernelBank(settings.banks, settings.base_experts, embed_dim, kernel_size)
        self.routed: RoutedExperts = LocalRouting(settings)
        self.post = nn.Conv2d(2 * embed_dim, embed_dim, 1, bias=False)
        self.norm = group_norm(embed_dim)
        self.convolve: TokenConvolution = convolve_tokens
        self.composed: bool | None = None
        """Whether tokens' kernels are composed where their leaders are here; None: as ``composing_is_cheaper`` says."""

    def forward(
        self,
        key_BEhw: Tensor,
        routing: Routing,
        tokens_per_sample: Sequence[int],
        sample_of_token_T: Tensor,
    ) -> Tensor:
        """-> [T, E, h, w]."""
        x_BEhw = self.pre(key_BEhw)
        if self.routed.leaders_are_here and self._composes(x_BEhw):
            output_TEhw = self.convolve(x_BEhw, self._composed_kernels(routing), tokens_per_sample)
        else:
            output_TEhw = self._one_after_the_other(x_BEhw, routing, tokens_per_sample, sample_of_token_T)
        return self.norm(output_TEhw).relu()

    def _composes(self, x_BEhw: Tensor) -> bool:
        if self.composed is not None:
            return self.composed
        _, embed_dim, height, width = x_BEhw.shape
        return composing_is_cheaper(embed_dim, height * width, self.kernel_size)

    def _composed_kernels(self, routing: Routing) -> Tensor:
        """Fixed expert, routed experts and the last 1x1 as one kernel a token: [T, E, E, k, k]."""
        for_fixed_EE, for_routed_EE = self.post.weight.flatten(1).chunk(2, dim=1)
        fixed_EEkk = (for_fixed_EE @ self.fixed_EEkk.flatten(1)).view_as(self.fixed_EEkk)
        return self.routed.mixed_kernels(routing, self.bank.kernels_GNEEkk, for_routed_EE) + fixed_EEkk

    def _one_after_the_other(
        self, x_BEhw: Tensor, routing: Routing, tokens_per_sample: Sequence[int], sample_of_token_T: Tensor
    ) -> Tensor:
        """The last 1x1 is split in two so that the fixed expert's half runs once a sample."""
        if self.routed.leaders_are_here:
            kernels_TEEkk = self.routed.mixed_kernels(routing, self.bank.kernels_GNEEkk)
            routed_TEhw = self.convolve(x_BEhw, kernels_TEEkk, tokens_per_sample)
        else:
            routed_TEhw = self.routed(x_BEhw, routing, sample_of_token_T, self.bank.kernels_GNEEkk)
        for_fixed, for_routed = self.post.weight.chunk(2, dim=1)
        fixed_BEhw = F.conv2d(F.conv2d(x_BEhw, self.fixed_EEkk, padding=self.kernel_size // 2), for_fixed)
        return F.conv2d(routed_TEhw, for_routed) + fixed_BEhw.index_select(0, sample_of_token_T)


def composing_is_cheaper(embed_dim: int, positions: int, kernel_size: int) -> bool:
    """Whether one composed convolution a token needs fewer multiply-adds than its parts one after the other.

    Composing multiplies E x E by E x E k k for the token and for the fixed expert. It saves, at every position, the
    last 1x1 of the token, and the fixed expert with its 1x1. Counted for a sample of one token: ZeRO reduces gradients
    in the order in which they come, so every rank must compute in the same way, whatever its batch. Forward and
    backward keep the proportion. A GPU's rates differ, so training there measures (training/composing.py).
    """
    taps = kernel_size**2
    return 2 * embed_dim * taps < (taps + 2) * positions


class LocalRouting(nn.Module):
    """Gate and leaders in one process: what DeepSpeed's MoE layer replaces in training."""

    leaders_are_here = True

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.gate = Gate(settings.embed_dim, settings.leaders, settings.top_k)
        self.leaders = LocalLeaders(settings)

    def route(self, condition_TE: Tensor) -> Routing:
        return self.gate(condition_TE)

    def mixed_kernels(self, routing: Routing, kernels_GNEEkk: Tensor, projection_EE: Tensor | None = None) -> Tensor:
        """As ``mix_kernels``, of all tokens: [T, E, E, k, k]."""
        return self.leaders(routing, kernels_GNEEkk, projection_EE)
