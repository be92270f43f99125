"""The measure itself, and that an error of the kinds that are feared does not pass it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from parity.cases import Problem
from parity.compare import BOUND, compare, differences, kind_of, worst_by_kind
from parity.parts import InParts
from parity.problem import Batches
from parity.record import Facts, Record
from parity.reference import run_reference
from torch import nn

GATE_BIAS = "levels.0.branches.0.routed.gate.linear.bias"
TENSORS = {
    "levels.0.branches.0.routed.gate.linear.weight": torch.ones(4),
    "levels.0.branches.0.routed.leaders.logits_LNE": torch.full((4,), 2.0),
    "levels.0.branches.0.bank.kernels_GNEEkk": torch.full((4,), 3.0),
    "levels.0.branches.0.fixed_EEkk": torch.full((4,), 4.0),
    "stem.bias": torch.full((4,), 1e-9),
    GATE_BIAS: torch.ones(4),
}


def moved(name: str, by: float) -> dict[str, torch.Tensor]:
    return {**TENSORS, name: TENSORS[name] * (1 + by)}


def record(gradients=TENSORS, weights=TENSORS, **changes) -> Record:
    plain = Record(Facts([1.0, 0.5], 2.0), [np.zeros((2, 3, 2), dtype=np.int64)], 0.1, gradients, weights)
    return dataclasses.replace(plain, **changes)


@pytest.mark.parametrize(
    ("name", "kind"), list(zip(TENSORS, ("gate", "leaders", "bank", "fixed expert", "dense", "gate"), strict=True))
)
def test_kinds_and_their_difference(name, kind):
    assert kind_of(name) == kind
    if kind != "dense":
        worst = worst_by_kind(moved(name, 1e-3), TENSORS, [TENSORS])[kind]
        assert worst.difference == pytest.approx(1e-3, rel=1e-3)
        assert worst.over_bound == pytest.approx(1e-3 / BOUND, rel=1e-3)
        assert worst.name == name


def test_a_tensor_of_almost_nothing_is_measured_against_the_floor():
    difference = differences(moved("stem.bias", 1.0), TENSORS)["stem.bias"]
    assert difference == pytest.approx(2e-9 / (1e-6 * 8.0), rel=1e-3)


def test_the_references_own_difference_relaxes_its_tensor_alone():
    gate, _, bank, *_ = TENSORS
    ours = {**moved(gate, 3e-5), bank: TENSORS[bank] * (1 + 3e-5)}
    found = worst_by_kind(ours, TENSORS, [moved(gate, 2e-5), TENSORS])
    assert found["gate"].over_bound == pytest.approx(0.75, rel=1e-2)
    assert found["gate"].relaxed == 1
    assert found["bank"].over_bound == pytest.approx(3, rel=1e-2)


@pytest.mark.parametrize(("name", "passes"), list(zip(TENSORS, (True, False, False, False), strict=False)))
def test_a_gate_alone_may_differ_by_the_rounding_of_scores(name, passes):
    """Where they cancel each other: a hundredth of their size is left."""
    small = {**TENSORS, GATE_BIAS: torch.full((4,), 5e-3), name: torch.full((4,), 5e-3)}
    one_rounding = {**small, name: small[name] + torch.tensor([1.0, -1.0, 0.0, 0.0]) * 2.0**-23}
    found = worst_by_kind(one_rounding, small, [small])[kind_of(name)]
    assert (found.over_bound <= 1) == passes
    three_roundings = {**small, name: small[name] + torch.tensor([3.0, -3.0, 0.0, 0.0]) * 2.0**-23}
    assert worst_by_kind(three_roundings, small, [small])[kind_of(name)].over_bound > 1


def test_tensors_that_only_one_run_has_are_an_error():
    with pytest.raises(ValueError, match=r"only one of the two runs has stem\.bias"):
        worst_by_kind({name: tensor for name, tensor in TENSORS.items() if name != "stem.bias"}, TENSORS, [TENSORS])


@pytest.mark.parametrize(
    ("ours", "problem"),
    [
        (record(gradients=moved("levels.0.branches.0.fixed_EEkk", 1e-4)), "gradient of levels.0.branches.0.fixed_EEkk"),
        (record(weights=moved("levels.0.branches.0.bank.kernels_GNEEkk", 1e-4)), "weight of levels.0"),
        (record(gradients={name: tensor * torch.nan for name, tensor in TENSORS.items()}), "gradient"),
        (record(facts=Facts([1.0, 0.5001], 2.0)), "the loss differs by 2.0e-04"),
        (record(facts=Facts([1.0, 0.5], 2.0001)), "the norm of the gradient differs by 5.0e-05"),
        (record(facts=Facts([1.0, 0.5], 2.0, replicas_equal=False)), "different copies"),
        (record(routing=[np.ones((2, 3, 2), dtype=np.int64)]), "other leaders"),
        (record(margin=1e-6), "near-tie"),
    ],
)
def test_what_differs_is_a_problem(ours, problem):
    assert compare(record(), record(), [record()]).problems == []
    assert any(problem in found for found in compare(ours, record(), [record()]).problems)


def test_in_parts_the_numbers_are_the_same_but_for_rounding():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2))
    x_BCHW = torch.randn(5, 3, 8, 8)
    whole = layers(x_BCHW)
    with InParts(2):
        in_microbatches = layers(x_BCHW)
    assert not torch.equal(whole, in_microbatches)
    torch.testing.assert_close(in_microbatches, whole, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def reference(parity_shards) -> Record:
    return run_reference(parity_shards, Problem("small", counts=(1, 3)))


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("training.learning_rate=0.0101",), "weight of"),
        (("training.gradient_clipping=0.01",), "gradient of"),
    ],
)
def test_a_hundredth_too_much_or_another_scale_does_not_pass(overrides, problem, parity_shards, reference):
    small = Problem("small", counts=(1, 3))
    in_microbatches = run_reference(parity_shards, small, parts=2)
    assert compare(in_microbatches, reference, [in_microbatches]).problems == []
    wrong = run_reference(parity_shards, dataclasses.replace(small, overrides=overrides))
    assert any(found.startswith(problem) for found in compare(wrong, reference, [in_microbatches]).problems)


def test_a_batch_has_the_counts_and_several_classes(parity_shards):
    batch = Batches(parity_shards, Problem("batch")).at(0)
    assert batch.tokens_per_sample == (1, 2, 4, 1, 3, 1, 2, 4)
    assert len({sample.class_name for sample in batch.samples}) == 8
