from __future__ import annotations

import naive_moe as naive
import numpy as np
import pytest
import torch

from unimmad.config import ModelSettings
from unimmad.model.leaders import BaseKernelBank, LocalLeaders, convolve_tokens, mix_kernels
from unimmad.model.routing import route

LEADERS, BASES, EMBED = 8, 3, 4


def make(size: int, banks: int, tokens: int, top_k: int = 2):
    generator = torch.Generator().manual_seed(size * 100 + banks * 10 + tokens)
    bank = BaseKernelBank(banks, BASES, EMBED, size)
    leaders = LocalLeaders(ModelSettings(leaders=LEADERS, base_experts=BASES, embed_dim=EMBED, banks=banks))
    with torch.no_grad():
        bank.kernels_GNEEkk.normal_(generator=generator)
        leaders.logits_LNE.normal_(generator=generator)
    condition_TE = torch.randn(tokens, EMBED, generator=generator)
    weight_LE = torch.randn(LEADERS, EMBED, generator=generator)
    return bank, leaders, route(condition_TE, weight_LE, torch.zeros(LEADERS), top_k)


def chosen_of(routing, token: int) -> list[tuple[int, float]]:
    return list(zip(routing.leaders_TK[token].tolist(), routing.scores_TK[token].tolist(), strict=True))


@pytest.mark.parametrize("banks", [1, 2, 8])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_routed_output_is_the_weighted_sum_of_the_leaders_convolutions(size, banks):
    counts = [1, 3, 2]
    bank, leaders, routing = make(size, banks, tokens=sum(counts))
    x_BEhw = torch.randn(3, EMBED, 6, 5, generator=torch.Generator().manual_seed(1))
    output = convolve_tokens(x_BEhw, leaders(routing, bank.kernels_GNEEkk), counts)
    assert output.shape == (6, EMBED, 6, 5)
    for token, sample in enumerate([0, 1, 1, 1, 2, 2]):
        expected = naive.routed_output(
            naive.array(x_BEhw[sample]),
            chosen_of(routing, token),
            naive.array(leaders.logits_LNE),
            naive.array(bank.kernels_GNEEkk),
        )
        np.testing.assert_allclose(output[token].detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("top_k", [1, 3])
def test_mixed_kernels_for_any_number_of_routed_leaders_across_banks(top_k):
    bank, leaders, routing = make(size=3, banks=2, tokens=4, top_k=top_k)
    per_bank = LEADERS // 2
    mixed = mix_kernels(leaders.logits_LNE, routing.leaders_TK, routing.scores_TK, bank.kernels_GNEEkk, per_bank)
    logits, bases = naive.array(leaders.logits_LNE), naive.array(bank.kernels_GNEEkk)
    for token in range(4):
        expected = sum(
            score * naive.leader_kernel(logits[leader], bases[leader // per_bank])
            for leader, score in chosen_of(routing, token)
        )
        np.testing.assert_allclose(mixed[token].detach(), expected, rtol=1e-5, atol=1e-6)


def test_one_leaders_kernel_mixes_its_own_bank():
    bank, leaders, _ = make(size=5, banks=2, tokens=1)
    logits, bases = naive.array(leaders.logits_LNE), naive.array(bank.kernels_GNEEkk)
    for leader in range(LEADERS):
        expected = naive.leader_kernel(logits[leader], bases[leader // (LEADERS // 2)])
        found = leaders.kernel_of(leader, bank.kernels_GNEEkk)
        np.testing.assert_allclose(found.detach(), expected, rtol=1e-5, atol=1e-6)


def test_a_projection_that_follows_is_taken_into_the_kernels():
    bank, leaders, routing = make(size=3, banks=2, tokens=2)
    projection_EE = torch.randn(EMBED, EMBED, generator=torch.Generator().manual_seed(2))
    x_BEhw = torch.randn(1, EMBED, 6, 5, generator=torch.Generator().manual_seed(1))
    apart = convolve_tokens(x_BEhw, leaders(routing, bank.kernels_GNEEkk), [2])
    expected = torch.einsum("oc,tchw->tohw", projection_EE, apart)
    output = convolve_tokens(x_BEhw, leaders(routing, bank.kernels_GNEEkk, projection_EE), [2])
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_a_token_whose_leaders_lie_in_different_banks_uses_both():
    bank, leaders, _ = make(size=1, banks=2, tokens=1)
    ids_TK, scores_TK = torch.tensor([[0, LEADERS - 1]]), torch.tensor([[0.25, 0.75]])
    mix_kernels(leaders.logits_LNE, ids_TK, scores_TK, bank.kernels_GNEEkk, LEADERS // 2).square().sum().backward()
    assert (bank.kernels_GNEEkk.grad.flatten(1).abs().sum(dim=1) > 0).all()


@pytest.mark.parametrize("banks", [1, 4])
def test_only_routed_leaders_and_their_banks_have_gradients(banks):
    bank, leaders, routing = make(size=3, banks=banks, tokens=2)
    convolve_tokens(torch.randn(1, EMBED, 4, 4), leaders(routing, bank.kernels_GNEEkk), [2]).square().sum().backward()
    routed = set(routing.leaders_TK.flatten().tolist())
    assert len(routed) < LEADERS
    trained = leaders.logits_LNE.grad.flatten(1).abs().sum(dim=1) > 0
    assert set(trained.nonzero().flatten().tolist()) == routed
    used = bank.kernels_GNEEkk.grad.flatten(1).abs().sum(dim=1) > 0
    assert set(used.nonzero().flatten().tolist()) == {leader // (LEADERS // banks) for leader in routed}


def test_gradients_are_those_of_leader_by_leader_convolutions():
    bank, leaders, routing = make(size=3, banks=2, tokens=3)
    counts, x_BEhw = [2, 1], torch.randn(2, EMBED, 5, 4)
    parameters = [leaders.logits_LNE, bank.kernels_GNEEkk]
    convolve_tokens(x_BEhw, leaders(routing, bank.kernels_GNEEkk), counts).pow(3).sum().backward()
    ours = [parameter.grad.clone() for parameter in parameters]
    total = torch.zeros(())
    for token, sample in enumerate([0, 0, 1]):
        output = torch.zeros(EMBED, 5, 4)
        for leader, score in chosen_of(routing, token):
            shares_NE = leaders.logits_LNE[leader].softmax(dim=0)
            kernel = (shares_NE[:, :, None, None, None] * bank.kernels_GNEEkk[leader // (LEADERS // 2)]).sum(dim=0)
            output = output + score * torch.nn.functional.conv2d(x_BEhw[sample], kernel, padding=1)
        total = total + output.pow(3).sum()
    for gradient, expected in zip(ours, torch.autograd.grad(total, parameters), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-3)


def test_no_token_gives_no_map_but_still_a_backward_pass():
    x_BEhw = torch.randn(0, EMBED, 5, 4, requires_grad=True)
    kernels_TEEkk = torch.randn(0, EMBED, EMBED, 3, 3, requires_grad=True)
    output = convolve_tokens(x_BEhw, kernels_TEEkk, [])
    assert output.shape == (0, EMBED, 5, 4)
    output.sum().backward()
    assert x_BEhw.grad is not None
    assert kernels_TEEkk.grad is not None


@pytest.mark.parametrize("tokens", [0, 2])
def test_maps_have_one_dtype_under_autocast_with_and_without_tokens(tokens):
    bank, leaders, routing = make(size=3, banks=1, tokens=tokens)
    with torch.autocast("cpu", torch.bfloat16):
        kernels_TEEkk = leaders(routing, bank.kernels_GNEEkk)
        output = convolve_tokens(torch.randn(tokens, EMBED, 5, 4), kernels_TEEkk, [1] * tokens)
    assert output.dtype == torch.bfloat16


def test_new_leaders_and_bases_have_the_papers_spread():
    torch.manual_seed(0)
    assert LocalLeaders(ModelSettings()).logits_LNE.std().item() == pytest.approx(0.02, rel=0.03)
    assert BaseKernelBank(1, 8, 32, 3).kernels_GNEEkk.std().item() == pytest.approx(0.05, rel=0.03)
