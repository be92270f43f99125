from __future__ import annotations

import naive_moe as naive
import numpy as np
import pytest
import torch

from unimmad.model.routing import Gate, route


def decide(tokens: int, leaders: int, top_k: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    condition_TE = torch.randn(tokens, 6, generator=generator)
    weight_LE = torch.randn(leaders, 6, generator=generator)
    bias_L = torch.randn(leaders, generator=generator)
    return condition_TE, weight_LE, bias_L, route(condition_TE, weight_LE, bias_L, top_k)


@pytest.mark.parametrize("top_k", [1, 2, 3, 8])
def test_each_token_goes_to_its_most_probable_leaders_with_scores_that_sum_to_one(top_k):
    condition_TE, weight_LE, bias_L, routing = decide(tokens=5, leaders=8, top_k=top_k)
    for token, condition_E in enumerate(condition_TE):
        chosen, probabilities = naive.route(*map(naive.array, (condition_E, weight_LE, bias_L)), top_k)
        assert routing.leaders_TK[token].tolist() == [leader for leader, _ in chosen]
        np.testing.assert_allclose(routing.scores_TK[token], [score for _, score in chosen], rtol=1e-5)
        np.testing.assert_allclose(routing.probabilities_TL[token], probabilities, rtol=1e-5)
        np.testing.assert_allclose(routing.logits_TL[token].softmax(0), probabilities, rtol=1e-5)
    np.testing.assert_allclose(routing.scores_TK.sum(dim=1), 1, rtol=1e-6)


def test_the_gate_has_a_bias_that_can_decide():
    gate = Gate(embed_dim=4, leaders=5, top_k=1)
    with torch.no_grad():
        gate.linear.bias[3] = 100
    routing = gate(torch.randn(6, 4))
    assert routing.leaders_TK.flatten().tolist() == [3] * 6
    assert routing.scores_TK.flatten().tolist() == [1.0] * 6


def test_autocast_does_not_change_the_decision():
    condition_TE, weight_LE, bias_L, plain = decide(tokens=9, leaders=8, top_k=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = route(condition_TE, weight_LE, bias_L, 2)
    assert cast.logits_TL.dtype == cast.scores_TK.dtype == torch.float32
    assert torch.equal(cast.logits_TL, plain.logits_TL)
    assert torch.equal(cast.leaders_TK, plain.leaders_TK)


def test_half_precision_conditions_are_routed_in_float32():
    condition_TE, weight_LE, bias_L, _ = decide(tokens=9, leaders=8, top_k=2)
    short_TE = condition_TE.bfloat16()
    routing = route(short_TE, weight_LE, bias_L, 2)
    assert torch.equal(routing.logits_TL, route(short_TE.float(), weight_LE, bias_L, 2).logits_TL)


def test_no_token_is_routed_to_nowhere():
    _, _, _, routing = decide(tokens=0, leaders=8, top_k=2)
    assert routing.leaders_TK.shape == routing.scores_TK.shape == (0, 2)


def test_scores_train_the_gate_through_the_routed_leaders_only():
    gate = Gate(embed_dim=4, leaders=5, top_k=2)
    condition_TE = torch.randn(1, 4, requires_grad=True)
    routing = gate(condition_TE)
    routing.scores_TK[0, 0].backward()
    gradient_L = gate.linear.bias.grad
    routed = routing.leaders_TK[0].tolist()
    others = [leader for leader in range(5) if leader not in routed]
    assert (gradient_L[routed].abs() > 1e-4).all()
    # Renormalised scores depend on the ratio of the routed leaders' probabilities alone.
    assert (gradient_L[others].abs() < 1e-7).all()
    assert condition_TE.grad.abs().sum() > 0
