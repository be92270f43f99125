"""Tokens sent to the ranks that own their leaders, against the local form with all leaders at hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import Arrays, run_on_ranks
from torch import Tensor

from unimmad.model.leaders import convolve_tokens, mix_kernels
from unimmad.model.routing import Routing
from unimmad.parallel.dispatch import dispatch, exchange_assignments, plan_dispatches

RANKS = 4
LEADERS, BASES, EMBED = 8, 3, 5
MAP = (4, 3)


@dataclass(frozen=True)
class Case:
    """Tokens of each sample of each rank, and how they are routed."""

    samples: tuple[tuple[int, ...], ...]
    """By rank: tokens of each of its samples."""
    ep_size: int = 4
    top_k: int = 2
    banks: int = 1
    all_to: tuple[int, ...] = ()
    """Every token's leaders; empty: each token has others."""
    kernel_size: int = 3

    def tokens(self, rank: int) -> int:
        return sum(self.samples[rank])


UNEVEN = ((2, 1), (1,), (3, 1, 1), (2,))
SOME_EMPTY = ((1, 2), (), (4,), ())
CASES = {
    "uneven counts": Case(UNEVEN),
    "two groups of two": Case(UNEVEN, ep_size=2),
    "kernel of one pixel": Case(UNEVEN, ep_size=2, kernel_size=1),
    "one leader a token": Case(UNEVEN, top_k=1),
    "all leaders": Case(UNEVEN, top_k=LEADERS),
    "ranks without tokens": Case(SOME_EMPTY),
    "a rank without tokens in each group": Case(SOME_EMPTY, ep_size=2),
    "only one rank has tokens": Case(((), (), (2, 1), ())),
    "all to one leader": Case(UNEVEN, top_k=1, all_to=(5,)),
    "all to two leaders of one rank": Case(UNEVEN, all_to=(7, 6)),
    "nobody stays": Case(((2,), (1, 1), (), ()), all_to=(7, 4)),
    "a bank a rank": Case(UNEVEN, banks=4),
    "two banks a rank": Case(UNEVEN, ep_size=2, banks=4),
    "a bank a rank, all to one": Case(SOME_EMPTY, ep_size=2, banks=2, top_k=1, all_to=(1,)),
}


@dataclass(frozen=True)
class Inputs:
    """One rank's leaves."""

    x: Tensor
    routing: Routing

    @property
    def scores(self) -> Tensor:
        return self.routing.scores_TK


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def inputs_of(case: Case, rank: int) -> Inputs:
    tokens = case.tokens(rank)
    generator = torch.Generator().manual_seed(10 + rank)
    leaders_TK = torch.rand(tokens, LEADERS, generator=generator).argsort(dim=1)[:, : case.top_k]
    if case.all_to:
        leaders_TK = torch.tensor(case.all_to).expand(tokens, -1)
    scores_TK = torch.rand(tokens, case.top_k, generator=generator).requires_grad_()
    nothing = torch.empty(0)
    x = numbers(len(case.samples[rank]), EMBED, *MAP, seed=20 + rank)
    return Inputs(x, Routing(nothing, nothing, leaders_TK, scores_TK))


def leaders_of(case: Case) -> tuple[Tensor, Tensor]:
    """Logits of all leaders and all banks of base kernels."""
    size = case.kernel_size
    return numbers(LEADERS, BASES, EMBED, seed=1), numbers(case.banks, BASES, EMBED, EMBED, size, size, seed=2)


def loss_of(output_TEhw: Tensor, rank: int) -> Tensor:
    """Another weight for every value of every rank."""
    weights = numbers(*output_TEhw.shape, seed=30 + rank).detach()
    return (output_TEhw.square() * weights).sum()


def gradients(inputs: Inputs, logits: Tensor, kernels: Tensor) -> dict[str, Tensor]:
    leaves = {"dx": inputs.x, "dscores": inputs.scores, "dlogits": logits, "dkernels": kernels}
    return {name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}


def on_rank(rank: int, world_size: int) -> dict[str, Tensor]:
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    found: dict[str, Tensor] = {}
    for name, case in CASES.items():
        group = dist.group.WORLD if case.ep_size == world_size else pairs[rank // 2]
        of_case = dispatched(case, rank, group)
        found |= {f"{name}/{key}": tensor for key, tensor in of_case.items()}
    return found


def other_gate(routing: Routing, shift: int) -> Routing:
    """Whose tokens go elsewhere, with other scores."""
    leaders_TK = (routing.leaders_TK + shift) % LEADERS
    return replace(routing, leaders_TK=leaders_TK, scores_TK=1 - routing.scores_TK.detach())


def dispatched(case: Case, rank: int, group: dist.ProcessGroup) -> dict[str, Tensor]:
    inputs, place = inputs_of(case, rank), rank % case.ep_size
    all_logits, all_kernels = leaders_of(case)
    logits = all_logits.detach().chunk(case.ep_size)[place].clone().requires_grad_()
    kernels = all_kernels.detach()
    if case.banks > 1:
        kernels = kernels.chunk(case.ep_size)[place]
    kernels = kernels.clone().requires_grad_()
    evaluated = []

    def apply_leaders(maps: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
        evaluated.append(len(maps))
        mixed = mix_kernels(logits, ids, scores, kernels, LEADERS // case.banks)
        return convolve_tokens(maps, mixed, [1] * len(maps))

    counts = case.samples[rank]
    sample_of_token_T = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))
    # Other gates around it, which must not mix with it.
    routings = [other_gate(inputs.routing, rank), inputs.routing, other_gate(inputs.routing, 1)]
    leaders_GTK = torch.stack([routing.leaders_TK for routing in routings])
    plans = plan_dispatches(leaders_GTK, LEADERS // case.ep_size, group)
    _, assignment, _ = exchange_assignments(plans, routings, group)
    _, plan, _ = plans
    output, comm_stats = dispatch(inputs.x, sample_of_token_T, plan, assignment, group, apply_leaders)
    loss_of(output, rank).backward()
    facts = {"sent": plan.sent, "received": plan.received, "stay": [len(plan.own_tokens)], "evaluated": evaluated}
    facts["traffic"] = (comm_stats.dispatched, comm_stats.routed)
    return {
        "output": output,
        **gradients(inputs, logits, kernels),
        **{key: torch.tensor(value) for key, value in facts.items()},
    }


def local_form(case: Case) -> list[Arrays]:
    """By rank: what it should have; gradients of leaders and banks are of the tokens of its group."""
    found = []
    for first in range(0, RANKS, case.ep_size):
        logits, kernels = leaders_of(case)
        group = range(first, first + case.ep_size)
        inputs = [inputs_of(case, rank) for rank in group]
        outputs = []
        for rank, given in zip(group, inputs, strict=True):
            leaders, scores = given.routing.leaders_TK, given.scores
            mixed = mix_kernels(logits, leaders, scores, kernels, LEADERS // case.banks)
            outputs.append(convolve_tokens(given.x, mixed, case.samples[rank]))
            loss_of(outputs[-1], rank).backward()
        for given, output in zip(inputs, outputs, strict=True):
            tensors = {"output": output, **gradients(given, logits, kernels)}
            found.append({key: tensor.detach().numpy() for key, tensor in tensors.items()})
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[Arrays]:
    return run_on_ranks(on_rank, RANKS, tmp_path_factory.mktemp("dispatch"))


@pytest.fixture(params=list(CASES))
def name(request) -> str:
    return request.param


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """By norms, since single values may cancel to almost nothing."""
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


def test_outputs_and_gradients_of_maps_and_scores_are_those_of_the_local_form(ranks, name):
    for rank, expected in enumerate(local_form(CASES[name])):
        assert ranks[rank][f"{name}/output"].shape == (CASES[name].tokens(rank), EMBED, *MAP)
        for key in ("output", "dx", "dscores"):
            close(ranks[rank][f"{name}/{key}"], expected[key])


def test_gradients_of_leaders_and_banks_gather_the_tokens_of_the_whole_group(ranks, name):
    case = CASES[name]
    expected = local_form(case)
    for first in range(0, RANKS, case.ep_size):
        members = ranks[first : first + case.ep_size]
        close(np.concatenate([member[f"{name}/dlogits"] for member in members]), expected[first]["dlogits"])
        banks = [member[f"{name}/dkernels"] for member in members]
        close(np.concatenate(banks) if case.banks > 1 else np.sum(banks, axis=0), expected[first]["dkernels"])


def test_a_token_goes_once_to_each_rank_that_owns_a_leader_of_it_and_nothing_else_is_sent(ranks, name):
    case = CASES[name]
    for first in range(0, RANKS, case.ep_size):
        members = range(first, first + case.ep_size)
        wanted = np.zeros((case.ep_size, case.ep_size), dtype=np.int64)
        for place, rank in enumerate(members):
            for leaders_K in inputs_of(case, rank).routing.leaders_TK.tolist():
                for owner in {leader // (LEADERS // case.ep_size) for leader in leaders_K}:
                    wanted[place, owner] += 1
        for place, rank in enumerate(members):
            assert ranks[rank][f"{name}/stay"] == wanted[place, place]
            assert ranks[rank][f"{name}/evaluated"] == wanted[:, place].sum()
            others = wanted * (1 - np.eye(case.ep_size, dtype=np.int64))
            np.testing.assert_array_equal(ranks[rank][f"{name}/sent"], others[place])
            np.testing.assert_array_equal(ranks[rank][f"{name}/received"], others[:, place])


def test_traffic_is_the_bytes_of_maps_and_of_all_that_goes_with_them(ranks, name):
    case = CASES[name]
    for rank in ranks:
        tokens = int(rank[f"{name}/sent"].sum())
        map_bytes, id_and_score_bytes, count_bytes = EMBED * MAP[0] * MAP[1] * 4, 4 + 4, 8
        routed = tokens * map_bytes
        dispatched = routed + tokens * case.top_k * id_and_score_bytes + case.ep_size * count_bytes
        np.testing.assert_array_equal(rank[f"{name}/traffic"], [dispatched, routed])
