"""Sends each token to the ranks that own its leaders, and brings the outputs home: nothing more, no padding.

Letters: T tokens of this rank, B its samples, G gates, K routed leaders, R ranks of the expert-parallel group, S sent
tokens, E embed channels, h x w positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from unimmad.model.routing import Routing
from unimmad.parallel.collectives import BYTES_OF_ID_AND_SCORE, all_to_all, all_to_all_scores

LeaderFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(maps [S, E, h, w], local leader ids [S, K], scores [S, K]) -> outputs [S, E, h, w]."""
Counts = Sequence[Sequence[int]]
"""Rows of G gates for R ranks, or from them."""


@dataclass(frozen=True)
class CommStats:
    """Bytes that this rank's forward passes handed over, counted from the buffers."""

    dispatched: int = 0
    """All that the dispatch sends: maps, ids, scores and the counts that announce them."""
    routed: int = 0
    """The maps alone: one for each distinct token and remote rank that owns a leader of it."""

    def __add__(self, other: CommStats) -> CommStats:
        return CommStats(self.dispatched + other.dispatched, self.routed + other.routed)


@dataclass(frozen=True)
class DispatchPlan:
    """Which token goes where. A token goes once to each rank that owns any of its K leaders."""

    token_S: Tensor
    """int64: this rank's tokens, in the order they are sent (by receiving rank, then token)."""
    rank_S: Tensor
    """int64: the receiving rank of each."""
    sent: tuple[int, ...]
    """How many go to each rank of the group; 0 to this one."""
    received: tuple[int, ...]
    """How many come from each."""
    own_tokens: Tensor
    """int64: tokens that have a leader here, which stay."""
    announced: int
    """Bytes spent on telling each rank how much comes."""
    leaders_per_rank: int


@dataclass(frozen=True)
class Assignment:
    """Which leaders of this rank get each map: of the tokens that come here, then of those that stay."""

    ids_SK: Tensor
    """int64, local."""
    scores_SK: Tensor
    """float32; 0 for a leader that lives elsewhere."""


def plan_dispatches(leaders_GTK: Tensor, leaders_per_rank: int, group: dist.ProcessGroup) -> list[DispatchPlan]:
    """Decide what G gates' tokens send, and learn from the other ranks how much comes to each gate's leaders.

    One exchange for all gates, and one read back to the host: sizes must be known there.
    """
    ranks, here = dist.get_world_size(group), dist.get_rank(group)
    gates, tokens, _ = leaders_GTK.shape
    device = leaders_GTK.device
    rank_R = torch.arange(ranks, device=device)
    owned_RGT = (leaders_GTK // leaders_per_rank == rank_R[:, None, None, None]).any(dim=3)
    sent_RG = owned_RGT.sum(dim=2)
    sent_RG[here] = 0
    received_RG = torch.empty_like(sent_RG)
    dist.all_to_all_single(received_RG, sent_RG, group=group)
    on_host = torch.cat([owned_RGT.flatten(), received_RG.flatten()]).cpu()
    owned_RGT = on_host[: owned_RGT.numel()].view(ranks, gates, tokens).bool()
    received_RG = on_host[owned_RGT.numel() :].view(ranks, gates)
    plans = []
    for gate in range(gates):
        remote_RT = owned_RGT[:, gate].clone()
        remote_RT[here] = False
        rank_S, token_S = remote_RT.nonzero(as_tuple=True)
        plans.append(
            DispatchPlan(
                token_S.to(device, non_blocking=True),
                rank_S.to(device, non_blocking=True),
                tuple(remote_RT.sum(dim=1).tolist()),
                tuple(received_RG[:, gate].tolist()),
                owned_RGT[here, gate].nonzero()[:, 0].to(device, non_blocking=True),
                sent_RG[:, gate].nbytes,
                leaders_per_rank,
            )
        )
    return plans


def exchange_assignments(
    plans: Sequence[DispatchPlan], routings: Sequence[Routing], group: dist.ProcessGroup
) -> list[Assignment]:
    """Send ids and scores of G gates' tokens to where their leaders live; what comes, and what stays here.

    One exchange for all gates, and one for the gradients of all scores in the backward pass.
    """
    here = dist.get_rank(group)
    ids_and_scores, stays = [], []
    for plan, routing in zip(plans, routings, strict=True):
        ids_and_scores.append(_for_rank(routing, plan.token_S, plan.rank_S[:, None], plan.leaders_per_rank))
        stays.append(_for_rank(routing, plan.own_tokens, here, plan.leaders_per_rank))
    sent_GR, received_GR = [plan.sent for plan in plans], [plan.received for plan in plans]
    ids_SK, scores_SK = (_by_rank(of_gates, sent_GR) for of_gates in zip(*ids_and_scores, strict=True))
    came = all_to_all_scores(ids_SK, scores_SK, _of_all_gates(sent_GR), _of_all_gates(received_GR), group)
    ids, scores = (_by_gate(rows_SK, received_GR) for rows_SK in came)
    return [
        Assignment(torch.cat([came_ids, own_ids]), torch.cat([came_scores, own_scores]))
        for came_ids, came_scores, (own_ids, own_scores) in zip(ids, scores, stays, strict=True)
    ]


def dispatch(
    x_BEhw: Tensor,
    sample_of_token_T: Tensor,
    plan: DispatchPlan,
    assignment: Assignment,
    group: dist.ProcessGroup,
    apply_leaders: LeaderFunction,
) -> tuple[Tensor, CommStats]:
    """Routed output of this rank's tokens, [T, E, h, w], wherever their leaders live; and what was sent for it.

    Every rank of the group takes part in every exchange, also one that sends or receives nothing: in the backward
    pass too, since its outputs depend on the (empty) rows that it received.
    """
    maps_SEhw = x_BEhw.index_select(0, sample_of_token_T[plan.token_S])
    came = all_to_all(maps_SEhw, plan.sent, plan.received, group)
    inputs = torch.cat([came, x_BEhw.index_select(0, sample_of_token_T[plan.own_tokens])])
    outputs = apply_leaders(inputs, assignment.ids_SK, assignment.scores_SK)
    for_others, own = outputs.split([came.shape[0], len(plan.own_tokens)])
    home = all_to_all(for_others, plan.received, plan.sent, group)
    result = outputs.new_zeros(len(sample_of_token_T), *outputs.shape[1:])
    result = result.index_add(0, plan.token_S, home).index_add(0, plan.own_tokens, own)
    pairs = len(maps_SEhw) * assignment.ids_SK.shape[1]
    return result, CommStats(
        dispatched=plan.announced + maps_SEhw.nbytes + pairs * BYTES_OF_ID_AND_SCORE, routed=maps_SEhw.nbytes
    )


def _for_rank(routing: Routing, token_S: Tensor, rank_S1: Tensor | int, leaders_per_rank: int) -> tuple[Tensor, Tensor]:
    """Local ids and scores of the tokens' leaders on their receiving rank; leaders elsewhere get score 0 there."""
    local_SK = routing.leaders_TK[token_S] - rank_S1 * leaders_per_rank
    here_SK = (local_SK >= 0) & (local_SK < leaders_per_rank)
    return local_SK * here_SK, routing.scores_TK.index_select(0, token_S) * here_SK


def _by_rank(rows_of_gates: Sequence[Tensor], counts_GR: Counts) -> Tensor:
    """Rows of G gates, each listed by rank, as one list by rank, then gate."""
    pieces_GR = [rows.split(list(counts)) for rows, counts in zip(rows_of_gates, counts_GR, strict=True)]
    return torch.cat([piece for of_rank in zip(*pieces_GR, strict=True) for piece in of_rank])


def _by_gate(rows: Tensor, counts_GR: Counts) -> list[Tensor]:
    """The reverse of ``_by_rank``."""
    pieces = rows.split([count for of_rank in zip(*counts_GR, strict=True) for count in of_rank])
    return [torch.cat(pieces[gate :: len(counts_GR)]) for gate in range(len(counts_GR))]


def _of_all_gates(counts_GR: Counts) -> list[int]:
    """Rows for each rank, or from it."""
    return [sum(of_rank) for of_rank in zip(*counts_GR, strict=True)]
