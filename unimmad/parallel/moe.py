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
from unimmad.parallel.dispatch import (
    Assignment,
    CommStats,
    DispatchPlan,
    dispatch,
    exchange_assignments,
    plan_dispatches,
)


class LeaderMoE(MoE):
    """DeepSpeed's MoE layer in place of ``LocalRouting``: same numbers, leaders on ``ep_size`` ranks."""

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
        self.leaders_are_here = ep_size == 1

    def route(self, condition_TE: Tensor) -> Routing:
        return self.deepspeed_moe.gate(condition_TE)

    def mixed_kernels(self, routing: Routing, kernels_GNEEkk: Tensor, projection_EE: Tensor | None = None) -> Tensor:
        """Where all leaders are here: each token's kernel, as in ``LocalRouting``."""
        leaders = self.deepspeed_moe.experts
        return leaders.mixed_kernels(routing.leaders_TK, routing.scores_TK, kernels_GNEEkk, projection_EE)

    def forward(self, x_BEhw: Tensor, routing: Routing, sample_of_token_T: Tensor, kernels_GNEEkk: Tensor) -> Tensor:
        """Where they are not: the routed output of every token, [T, E, h, w], through the dispatch."""
        return self.deepspeed_moe(x_BEhw, sample_of_token_T, kernels_GNEEkk)


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

    def mixed_kernels(
        self, ids_TK: Tensor, scores_TK: Tensor, kernels_GNEEkk: Tensor, projection_EE: Tensor | None = None
    ) -> Tensor:
        """As ``mix_kernels``, by local leader ids."""
        return mix_kernels(self.logits_LNE, ids_TK, scores_TK, kernels_GNEEkk, self.leaders_per_bank, projection_EE)

    def forward(self, maps_SEhw: Tensor, ids_SK: Tensor, scores_SK: Tensor, kernels_GNEEkk: Tensor) -> Tensor:
        """Each token's mixed kernel over a map of its own."""
        mixed = self.mixed_kernels(ids_SK, scores_SK, kernels_GNEEkk)
        return convolve_tokens(maps_SEhw, mixed, [1] * len(maps_SEhw))


class LeaderMOELayer(MOELayer):
    """Leaders wherever they live. All gates decide first: ``plan_all`` says what goes where."""

    decided: tuple[DispatchPlan, Assignment] | None = None
    """For the forward pass that is going on."""
    comm_stats = CommStats()
    """Of all forward passes since somebody reset it."""

    def forward(self, x_BEhw: Tensor, sample_of_token_T: Tensor, kernels_GNEEkk: Tensor) -> Tensor:
        decided, self.decided = self.decided, None
        assert decided is not None, "no plan: the model's on_routed was not called"

        def apply_leaders(maps_SEhw: Tensor, ids_SK: Tensor, scores_SK: Tensor) -> Tensor:
            return self.experts(maps_SEhw, ids_SK, scores_SK, kernels_GNEEkk)

        output_TEhw, comm_stats = dispatch(x_BEhw, sample_of_token_T, *decided, self.ep_group, apply_leaders)
        self.comm_stats += comm_stats
        return output_TEhw


def plan_all(layers: Sequence[LeaderMOELayer], routings: Sequence[Routing]) -> Sequence[Routing]:
    """Give every layer its plan and assignment: for all of them two exchanges and one fetch to the host."""
    group = layers[0].ep_group
    leaders_GTK = torch.stack([routing.leaders_TK for routing in routings])
    plans = plan_dispatches(leaders_GTK, layers[0].num_local_experts, group)
    for layer, plan, assignment in zip(layers, plans, exchange_assignments(plans, routings, group), strict=True):
        layer.decided = plan, assignment
    return routings


def expert_parallel_slice(whole: Tensor, ep_size: int, ep_rank: int, group_name: str) -> nn.Parameter:
    """This rank's share of a tensor's leading dimension, as a parameter that DeepSpeed treats as an expert's."""
    share = nn.Parameter(whole.detach().chunk(ep_size)[ep_rank].clone(), requires_grad=whole.requires_grad)
    # What DeepSpeed's own Experts sets: reduce its gradient over the ranks that hold the same share.
    share.allreduce = False  # type: ignore[attr-defined]
    share.group_name = group_name  # type: ignore[attr-defined]
    return share
