from __future__ import annotations

import numpy as np
import pytest
import torch

from unimmad.config import load_recipe
from unimmad.methods.registry import build_method
from unimmad.model.anomaly_map import cosine_distance
from unimmad.model.loss import (
    balance_losses,
    balance_scale,
    focal_reconstruction,
    mean_probabilities,
    unimmad_loss,
)
from unimmad.model.method import StepFacts, alone
from unimmad.model.routing import Routing, route
from unimmad.model.unimmad import Reconstruction

LEADERS = 5
SIZES = (8, 4, 2)


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def routing_of(logits_TL: torch.Tensor) -> Routing:
    """The gate's decision whose logits are given."""
    return route(logits_TL, torch.eye(LEADERS), torch.zeros(LEADERS), top_k=2)


def output_of(tokens: int, seed: int = 0) -> Reconstruction:
    distances = tuple(random(tokens, n, n, seed=seed + n).abs() for n in SIZES)
    routings = tuple(
        tuple(routing_of(random(tokens, LEADERS, seed=seed + 10 * level + branch)) for branch in range(3))
        for level in range(3)
    )
    return Reconstruction(distances, routings, torch.arange(tokens), tokens)


def naive_reconstruction(distances, weights, gamma: float) -> float:
    total = 0.0
    for token, weight in enumerate(weights):
        for distance_Thw in distances:
            d = distance_Thw[token].double().numpy()
            total += float(weight) * np.mean(d * d**gamma)
    return total / len(weights)


def naive_balance(logits_TL) -> float:
    logits = logits_TL.detach().double().numpy()
    exponentials = np.exp(logits)
    mean = np.mean(exponentials / exponentials.sum(axis=1, keepdims=True), axis=0)
    variance = np.mean((mean - mean.mean()) ** 2)
    return variance / (mean.mean() ** 2 + 1e-8) + 1e-4 * np.mean(np.log(exponentials.sum(axis=1)) ** 2)


@pytest.mark.parametrize("gamma", [2.0, 0.0, 1.5])
def test_the_loss_is_its_definition(gamma):
    output, weights = output_of(tokens=6), torch.tensor([1.0, 0.5, 0.5, 10.0, 10.0, 1.0])
    loss = unimmad_loss(output, weights, balance_scale=0.25, focal_gamma=gamma)
    expected = naive_reconstruction(output.distances, weights, gamma)
    balance = np.mean([sum(naive_balance(routing.logits_TL) for routing in level) for level in output.routings])
    assert loss.parts["reconstruction"].item() == pytest.approx(expected, rel=1e-5)
    assert loss.parts["balance"].item() == pytest.approx(balance, rel=1e-5)
    assert loss.total.item() == pytest.approx(expected + 0.25 * balance, rel=1e-5)


def test_the_focal_weight_passes_no_gradient():
    distance = random(2, 4, 4, seed=1).abs().requires_grad_()
    weights = torch.tensor([1.0, 3.0])
    focal_reconstruction([distance], weights, 2.0).backward()
    # Of d * w with w held: the gradient is w, not the 3 d^2 of d^3.
    expected = weights[:, None, None] * distance.detach() ** 2 / 16
    torch.testing.assert_close(distance.grad, expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.5, 2.0])
def test_a_perfect_reconstruction_has_a_finite_loss_at_any_gamma(gamma):
    """1 - cosine of a direction and itself comes out below 0 at some positions."""
    target = random(2, 256, 8, 8, seed=3)
    cosines = torch.nn.functional.cosine_similarity(target, 7 * target, dim=1)
    assert (1 - cosines).min() < 0
    made = (7 * target).requires_grad_()
    loss = focal_reconstruction([cosine_distance(target, made)], torch.ones(2), gamma)
    loss.backward()
    assert 0 <= loss.item() < 1e-5
    assert made.grad.isfinite().all()


def test_a_weight_counts_for_its_own_samples_tokens_only():
    output = output_of(tokens=3)
    plain = unimmad_loss(output, torch.ones(3), 1.0, 2.0).parts["reconstruction"]
    weighted = unimmad_loss(output, torch.tensor([1.0, 10.0, 1.0]), 1.0, 2.0).parts["reconstruction"]
    middle = naive_reconstruction([distance[1:2] for distance in output.distances], [1.0], 2.0)
    assert (weighted - plain).item() == pytest.approx(9 * middle / 3, rel=1e-4)
    assert naive_reconstruction(output.distances, [4.0] * 3, 2.0) != pytest.approx(weighted.item(), rel=1e-2)


def balance_loss(logits_TL: torch.Tensor) -> torch.Tensor:
    """Of one gate, whose every token is on this rank."""
    gates = [routing_of(logits_TL)]
    return balance_losses(gates, *mean_probabilities(gates, len(logits_TL), 1, alone)).squeeze()


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_the_balance_loss_and_its_gradient_are_those_of_the_definition(tokens):
    logits_TL = random(tokens, LEADERS, seed=tokens).requires_grad_()
    loss = balance_loss(logits_TL)
    assert loss.item() == pytest.approx(naive_balance(logits_TL), rel=1e-4)
    loss.backward()
    step = 1e-5
    for token, leader in np.ndindex(tokens, LEADERS):
        change = torch.zeros(tokens, LEADERS, dtype=torch.float64)
        change[token, leader] = step
        higher, lower = naive_balance(logits_TL.double() + change), naive_balance(logits_TL.double() - change)
        assert logits_TL.grad[token, leader].item() == pytest.approx((higher - lower) / (2 * step), rel=1e-3, abs=1e-6)


def test_even_routing_has_no_variance_and_one_leader_for_all_has_the_most():
    even = torch.cat([100 * torch.eye(LEADERS), 100 * torch.eye(LEADERS)])
    collapsed = torch.zeros(10, LEADERS)
    collapsed[:, 2] = 100.0
    logsumexp = 1e-4 * 100.0**2
    assert balance_loss(even).item() == pytest.approx(logsumexp, abs=1e-5)
    assert balance_loss(collapsed).item() == pytest.approx(LEADERS - 1 + logsumexp, rel=1e-5)


def test_the_models_loss_takes_weight_power_and_balance_from_the_recipe():
    recipe = load_recipe("tiny", ["training.focal_gamma=1.5", "training.balance_epochs=4"])
    output, weights = output_of(tokens=6), torch.linspace(0.5, 3, 6)
    loss = build_method(recipe).loss(output, StepFacts(weights, recipe.training, epoch=3))
    expected = unimmad_loss(output, weights, balance_scale=0.25, focal_gamma=1.5)
    assert loss.total.item() == pytest.approx(expected.total.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, 1.0), (1, 0.995), (100, 0.5), (199, 0.005), (200, 0.001), (300, 0.001)]
)
def test_the_balance_scale_falls_to_its_floor(epoch, expected):
    assert balance_scale(epoch, epochs=200, floor=0.001) == pytest.approx(expected)


class PretendRanks:
    """``global_sum`` over ranks that are computed one after the other: repeated until every sum has settled."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.values: dict[tuple[int, int], torch.Tensor] = {}
        self.rank = self.calls = 0

    def start(self, rank: int) -> None:
        self.rank, self.calls = rank, 0

    def global_sum(self, value: torch.Tensor) -> torch.Tensor:
        self.values[self.rank, self.calls] = value.detach().clone()
        total = sum(self.values.get((rank, self.calls), value.detach()) for rank in range(self.size))
        self.calls += 1
        return total


@pytest.mark.parametrize("counts", [(3, 3), (1, 5), (2, 1, 3)])
def test_the_mean_over_ranks_of_values_and_gradients_is_that_of_one_process(counts):
    tokens, world = sum(counts), len(counts)
    weights = torch.linspace(0.5, 3, tokens)
    distances = random(tokens, 4, 4, seed=1).abs().requires_grad_()
    logits = random(3, tokens, LEADERS, seed=2).requires_grad_()

    def loss_of(own: slice, world_size: int, global_sum=alone):
        first, second, third = (routing_of(of_gate[own]) for of_gate in logits)
        routings = ((first, second), (third,))
        output = Reconstruction((distances[own],), routings, torch.arange(tokens)[own], tokens)
        return unimmad_loss(output, weights[own], 1.0, 2.0, world_size, global_sum)

    reference = loss_of(slice(None), 1)
    expected = torch.autograd.grad(reference.total, [distances, logits])
    ranks = PretendRanks(world)
    ends = np.cumsum(counts)
    for _ in range(3):
        losses = []
        for rank, (end, count) in enumerate(zip(ends, counts, strict=True)):
            ranks.start(rank)
            losses.append(loss_of(slice(end - count, end), world, ranks.global_sum))
    mean = torch.stack([loss.total for loss in losses]).mean()
    assert mean.item() == pytest.approx(reference.total.item(), rel=1e-5)
    for ours, theirs in zip(torch.autograd.grad(mean, [distances, logits]), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
