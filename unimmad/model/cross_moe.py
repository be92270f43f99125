"""C-MoE, the decoder of one level (METHOD part 6): reconstructs each token's teacher features from the shared ones.

What depends on the sample only (key, the branches' inputs, the fixed experts, the key half of the cross condition)
is computed once a sample, not once a token. Tokens take their sample's map by ``index_select``, since the gradient of
plain indexing adds up in an order that changes from run to run, on CPUs too.

Letters: B samples, T tokens (sample, modality), C_l channels of the level, E embed channels, L leaders,
K routed leaders, h x w positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unimmad.model.blocks import group_norm, pointwise
from unimmad.model.leaders import INITIAL_LEADER_STD, BaseKernelBank, LocalLeaders
from unimmad.model.routing import Gate, Routing


class CrossMoE(nn.Module):
    """All of one level: condition, branches, reconstruction."""

    def __init__(
        self,
        channels: int,
        embed_dim: int,
        kernel_sizes: Sequence[int],
        leaders: int,
        base_experts: int,
        top_k: int,
        banks: int,
        initial_leader_std: float = INITIAL_LEADER_STD,
        initial_output_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.key = pointwise(channels, embed_dim)
        self.query = pointwise(channels, embed_dim)
        self.condition = CrossCondition(embed_dim)
        self.branches = nn.ModuleList(
            [
                MiMoEBranch(embed_dim, size, leaders, base_experts, top_k, banks, initial_leader_std)
                for size in kernel_sizes
            ]
        )
        self.out = pointwise(embed_dim * len(kernel_sizes), channels)
        output_norm = self.out[1]
        assert isinstance(output_norm, nn.GroupNorm)
        nn.init.constant_(output_norm.bias, initial_output_bias)

    def forward(
        self,
        shared_BChw: Tensor,
        teacher_TChw: Tensor,
        tokens_per_sample: Sequence[int],
        sample_of_token_T: Tensor,
    ) -> tuple[Tensor, list[Routing]]:
        """Reconstruction [T, C_l, h, w] of the teacher's features, and each branch's routing."""
        key_BEhw = self.key(shared_BChw)
        query_TEhw = self.query(teacher_TChw)
        condition_TE = self.condition(key_BEhw, query_TEhw, sample_of_token_T)
        outputs, routings = [], []
        for branch in self.branches:
            output_TEhw, routing = branch(key_BEhw, condition_TE, tokens_per_sample, sample_of_token_T)
            outputs.append(output_TEhw)
            routings.append(routing)
        return self.out(torch.cat(outputs, dim=1)), routings


class CrossCondition(nn.Module):
    """What the router sees of a token: key and query together, averaged over the map."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.join = nn.Conv2d(2 * embed_dim, embed_dim, 3, padding=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(embed_dim)
        self.group_norm = group_norm(embed_dim)
        self.mix = pointwise(embed_dim, embed_dim)

    def forward(self, key_BEhw: Tensor, query_TEhw: Tensor, sample_of_token_T: Tensor) -> Tensor:
        """-> [T, E]. The 3x3 convolution is split so that its key half runs once a sample."""
        for_key, for_query = self.join.weight.chunk(2, dim=1)
        key_half_BEhw = F.conv2d(key_BEhw, for_key, padding=1)
        joined_TEhw = F.conv2d(query_TEhw, for_query, padding=1) + key_half_BEhw.index_select(0, sample_of_token_T)
        x_TEhw = self.group_norm(F.gelu(self.batch_norm(joined_TEhw))).relu()
        # In float32 whatever autocast says: the router must not flip with the precision.
        return self.mix(x_TEhw).float().mean(dim=(2, 3))


class MiMoEBranch(nn.Module):
    """One kernel size: the fixed expert beside the routed leaders. ``routed`` has a local and a parallel form."""

    def __init__(
        self,
        embed_dim: int,
        kernel_size: int,
        leaders: int,
        base_experts: int,
        top_k: int,
        banks: int,
        initial_leader_std: float = INITIAL_LEADER_STD,
    ) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.pre = pointwise(embed_dim, embed_dim)
        self.fixed_EEkk = nn.Parameter(torch.empty(embed_dim, embed_dim, kernel_size, kernel_size))
        nn.init.dirac_(self.fixed_EEkk)
        self.bank = BaseKernelBank(banks, base_experts, embed_dim, kernel_size)
        self.routed: nn.Module = LocalRouting(embed_dim, leaders, base_experts, top_k, banks, initial_leader_std)
        self.post = nn.Conv2d(2 * embed_dim, embed_dim, 1, bias=False)
        self.norm = group_norm(embed_dim)

    def forward(
        self,
        key_BEhw: Tensor,
        condition_TE: Tensor,
        tokens_per_sample: Sequence[int],
        sample_of_token_T: Tensor,
    ) -> tuple[Tensor, Routing]:
        """-> [T, E, h, w] and the gate's decision."""
        x_BEhw = self.pre(key_BEhw)
        routed_TEhw, routing = self.routed(x_BEhw, condition_TE, tokens_per_sample, self.bank.kernels_GNEEkk)
        # The last 1x1 is split in two so that the fixed expert's half runs once a sample.
        for_fixed, for_routed = self.post.weight.chunk(2, dim=1)
        fixed_BEhw = F.conv2d(F.conv2d(x_BEhw, self.fixed_EEkk, padding=self.kernel_size // 2), for_fixed)
        output_TEhw = F.conv2d(routed_TEhw, for_routed) + fixed_BEhw.index_select(0, sample_of_token_T)
        return self.norm(output_TEhw).relu(), routing


class LocalRouting(nn.Module):
    """Gate and leaders in one process: what DeepSpeed's MoE layer replaces in training."""

    def __init__(
        self,
        embed_dim: int,
        leaders: int,
        base_experts: int,
        top_k: int,
        banks: int,
        initial_leader_std: float = INITIAL_LEADER_STD,
    ) -> None:
        super().__init__()
        self.gate = Gate(embed_dim, leaders, top_k)
        self.leaders = LocalLeaders(leaders, base_experts, embed_dim, banks, initial_leader_std)

    def forward(
        self, x_BEhw: Tensor, condition_TE: Tensor, tokens_per_sample: Sequence[int], kernels_GNEEkk: Tensor
    ) -> tuple[Tensor, Routing]:
        routing = self.gate(condition_TE)
        return self.leaders(x_BEhw, routing, tokens_per_sample, kernels_GNEEkk), routing
