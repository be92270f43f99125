from __future__ import annotations

from typing import Any

import naive_moe as naive
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from unimmad.config import ModelSettings
from unimmad.model.cross_moe import CrossCondition, CrossMoE, MiMoEBranch, composing_is_cheaper

CHANNELS, EMBED, LEADERS = 6, 4, 5


def sizes(**others: Any) -> ModelSettings:
    return ModelSettings(**{"embed_dim": EMBED, "leaders": LEADERS, "base_experts": 3, **others})


def make_level(banks: int = 1, kernel_sizes: tuple[int, ...] = (1, 3, 5), seed: int = 3) -> CrossMoE:
    level = CrossMoE(CHANNELS, sizes(banks=banks, leaders=LEADERS * banks, kernel_sizes=kernel_sizes))
    naive.randomise(level, seed)
    return level


def maps(count: int, channels: int, seed: int) -> torch.Tensor:
    return torch.randn(count, channels, 6, 5, generator=torch.Generator().manual_seed(seed))


def sample_of_token(counts: list[int]) -> torch.Tensor:
    return torch.tensor([sample for sample, count in enumerate(counts) for _ in range(count)])


@pytest.mark.parametrize("training", [False, True])
def test_the_cross_condition_is_that_of_key_and_query_joined(training):
    counts = [2, 1, 3]
    condition = CrossCondition(EMBED).train(training)
    naive.randomise(condition, seed=8)
    keys_BEhw, queries_TEhw = maps(3, EMBED, 1), maps(6, EMBED, 2)
    order = sample_of_token(counts)
    expected = naive.conditions(condition, naive.array(keys_BEhw)[order], naive.array(queries_TEhw))
    np.testing.assert_allclose(condition(keys_BEhw, queries_TEhw, order).detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("composing", [False, True])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_branch_is_the_fixed_expert_beside_the_routed_ones(size, composing):
    counts = [1, 2]
    branch = MiMoEBranch(size, sizes())
    naive.randomise(branch, seed=size)
    keys_BEhw, condition_TE = maps(2, EMBED, 4), torch.randn(3, EMBED, generator=torch.Generator().manual_seed(6))
    order = sample_of_token(counts)
    branch.composed = composing
    routing = branch.routed.route(condition_TE)
    output_TEhw = branch(keys_BEhw, routing, counts, order)
    assert routing.leaders_TK.shape == (3, 2)
    for token, sample in enumerate(order):
        expected = naive.branch_output(branch, naive.array(keys_BEhw[sample]), naive.array(condition_TE[token]))
        np.testing.assert_allclose(output_TEhw[token].detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize(("embed", "side"), [(4, 12), (8, 6), (32, 5)])
def test_composing_is_chosen_where_it_needs_fewer_multiplications(embed, side, size):
    """Both ways counted as they run."""
    branch = MiMoEBranch(size, sizes(embed_dim=embed))
    keys_BEhw = torch.zeros(1, embed, side, side)
    routing = branch.routed.route(torch.zeros(1, embed))
    needed = {}
    for composing in (False, True):
        branch.composed = composing
        with FlopCounterMode(display=False) as counter:
            branch(keys_BEhw, routing, [1], sample_of_token([1]))
        needed[composing] = counter.get_total_flops()
    assert composing_is_cheaper(embed, side * side, size) == (needed[True] < needed[False])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("counts", "banks"), [([1], 1), ([4], 1), ([2, 2], 1), ([1, 3, 2], 1), ([1, 3, 2], 2), ([2, 1], 5)]
)
def test_a_level_is_its_definition_token_by_token(counts, banks, training):
    level = make_level(banks).train(training)
    shared_BChw, teacher_TChw = maps(len(counts), CHANNELS, 1), maps(sum(counts), CHANNELS, 2)
    expected = naive.cross_moe(level, naive.array(shared_BChw), naive.array(teacher_TChw), counts)
    output_TChw, routings = level(shared_BChw, teacher_TChw, counts, sample_of_token(counts))
    assert len(routings) == 3
    np.testing.assert_allclose(output_TChw.detach(), expected, rtol=1e-3, atol=2e-4)


def test_other_kernel_sizes_are_other_branches():
    level = make_level(kernel_sizes=(3, 7)).eval()
    shared_BChw, teacher_TChw = maps(1, CHANNELS, 1), maps(2, CHANNELS, 2)
    expected = naive.cross_moe(level, naive.array(shared_BChw), naive.array(teacher_TChw), [2])
    output_TChw, routings = level(shared_BChw, teacher_TChw, [2], sample_of_token([2]))
    assert len(routings) == 2
    np.testing.assert_allclose(output_TChw.detach(), expected, rtol=1e-3, atol=2e-4)


def test_a_token_sees_its_own_teacher_features_through_the_router_alone():
    """Two tokens of a sample that are routed alike are reconstructed alike, whatever their features."""
    level = make_level().eval()
    with torch.no_grad():
        for branch in level.branches:
            branch.routed.gate.linear.weight.zero_()
    output_TChw, _ = level(maps(1, CHANNELS, 1), maps(2, CHANNELS, 2), [2], sample_of_token([2]))
    torch.testing.assert_close(output_TChw[0], output_TChw[1])


def test_the_fixed_expert_begins_as_the_identity():
    branch = MiMoEBranch(5, sizes())
    x = maps(1, EMBED, 1)
    torch.testing.assert_close(torch.nn.functional.conv2d(x, branch.fixed_EEkk, padding=2), x)


def test_every_parameter_but_the_leaders_not_routed_has_a_gradient():
    level = make_level(seed=4)
    counts = [1, 1]
    output_TChw, routings = level(maps(2, CHANNELS, 1), maps(2, CHANNELS, 2), counts, sample_of_token(counts))
    output_TChw.pow(3).sum().backward()
    for branch, routing in zip(level.branches, routings, strict=True):
        trained_L = branch.routed.leaders.logits_LNE.grad.flatten(1).abs().sum(dim=1) > 0
        routed = set(routing.leaders_TK.flatten().tolist())
        assert set(trained_L.nonzero().flatten().tolist()) == routed
    without = [name for name, parameter in level.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert without == []
