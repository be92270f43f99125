"""The parallel form of a MiMoE branch's routed experts: a DeepSpeed MoE layer whose experts are leaders.

DeepSpeed supplies the layer, its process groups and the treatment of expert-parallel gradients. Gate, experts and
dispatch are ours: its gate has no bias and perturbs the second choice, its dispatch pads to the busiest expert,
and a token here is a whole feature map.

Letters: as in model/leaders.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from deepspeed.moe.layer import MoE
from deepspeed.moe.sharded_moe import MOELayer, TopKGate
from torch import Tensor, nn

from unimmad.model.cross_moe import LocalRouting
from unimmad.model.leaders import convolve_tokens, mix_kernels
from unimmad.model.routing import Routing, route
from unimmad.parallel.dispatch import Traffic, dispatch


class LeaderMoE(MoE):
    """DeepSpeed's MoE layer in place of ``LocalRouting``: same call, same numbers, leaders on ``ep_size`` ranks."""

    def __init__(self, local: LocalRouting, ep_size: int, ep_rank: int) -> None:
        leaders, _, embed_dim = local.leaders.logits_LNE.shape
        # The identity is a stand-in: DeepSpeed would copy an expert once for each leader.
        super().__init__(embed_dim, nn.Identity(), leaders, ep_size, k=local.gate.top_k)
        self.deepspeed_moe = LeaderMOELayer(
            LeaderGate(local.gate.linear, local.gate.top_k),
            PlacedLeaders(local, ep_size, ep_rank, self.expert_group_name),
            self.expert_group_name,
            ep_size,
            self.num_local_experts,
        )

    def forward(
        self, x_BEhw: Tensor, condition_TE: Tensor, tokens_per_sample: Sequence[int], kernels_GNEEkk: Tensor
    ) -> tuple[Tensor, Routing]:
        return self.deepspeed_moe(x_BEhw, condition_TE, tokens_per_sample, kernels_GNEEkk)


class LeaderGate(TopKGate):
    """DeepSpeed's gate with our bias and routing rule."""

    def __init__(self, linear: nn.Linear, top_k: int) -> None:
        super().__init__(linear.in_features, linear.out_features, k=top_k)
        self.wg = linear

    def forward(self, condition_TE: Tensor) -> Routing:
        return route(condition_TE, self.wg.weight, self.wg.bias, self.k)


class PlacedLeaders(nn.Module):
    """The leaders that live on this rank, stacked in one expert-parallel parameter."""

    def __init__(self, local: LocalRouting, ep_size: int, ep_rank: int, group_name: str) -> None:
        super().__init__()
        self.logits_LNE = expert_parallel_slice(local.leaders.logits_LNE, ep_size, ep_rank, group_name)
        self.leaders_per_bank = local.leaders.leaders_per_bank

    def forward(
        self, maps: Tensor, tokens_per_map: Sequence[int], ids: Tensor, scores: Tensor, kernels: Tensor
    ) -> Tensor:
        """Each token's mixed kernel over its map: as ``LocalLeaders``, by local leader ids."""
        mixed = mix_kernels(self.logits_LNE, ids, scores, kernels, self.leaders_per_bank)
        return convolve_tokens(maps, mixed, tokens_per_map)


class LeaderMOELayer(MOELayer):
    """Gate, then leaders: in place where all of them are here, else through the dispatch."""

    traffic = Traffic()
    """Of all forward passes since somebody reset it."""

    def forward(
        self, x_BEhw: Tensor, condition_TE: Tensor, tokens_per_sample: Sequence[int], kernels_GNEEkk: Tensor
    ) -> tuple[Tensor, Routing]:
        routing = self.gate(condition_TE)
        if self.ep_size == 1:
            output_TEhw = self.experts(x_BEhw, tokens_per_sample, routing.leaders_TK, routing.scores_TK, kernels_GNEEkk)
            return output_TEhw, routing
        sample_of_token_T = torch.repeat_interleave(
            torch.arange(len(tokens_per_sample)), torch.tensor(tokens_per_sample)
        ).to(x_BEhw.device)

        def apply_leaders(maps_SEhw: Tensor, ids_SK: Tensor, scores_SK: Tensor) -> Tensor:
            return self.experts(maps_SEhw, [1] * len(maps_SEhw), ids_SK, scores_SK, kernels_GNEEkk)

        output_TEhw, traffic = dispatch(
            x_BEhw, sample_of_token_T, routing, self.num_local_experts, self.ep_group, apply_leaders
        )
        self.traffic += traffic
        return output_TEhw, routing


def expert_parallel_slice(whole: Tensor, ep_size: int, ep_rank: int, group_name: str) -> nn.Parameter:
    """This rank's share of a tensor's leading dimension, as a parameter that DeepSpeed treats as an expert's."""
    share = nn.Parameter(whole.detach().chunk(ep_size)[ep_rank].clone())
    # What DeepSpeed's own Experts sets: reduce its gradient over the ranks that hold the same share.
    share.allreduce = False  # type: ignore[attr-defined]
    share.group_name = group_name  # type: ignore[attr-defined]
    return share
