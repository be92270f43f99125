"""Gates and leaders learn on, others come in, and everything else stays as it is, to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from unimmad.config import load_recipe
from unimmad.methods.registry import build_method, new_model
from unimmad.model.growing import (
    begin_new_leaders,
    branches_of,
    is_new,
    take_over,
    train_experts_alone,
    trained_parameters,
    watched_gates,
)
from unimmad.model.method import StepFacts
from unimmad.model.unimmad import UniMMAD

RECIPE = load_recipe("tiny", ["model.leaders=4"])
TOKENS = [2, 1]


def batch(seed: int) -> tuple[Tensor, list[int], Tensor]:
    images_TCHW = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    return images_TCHW, TOKENS, torch.tensor([0, 1, 0])


@pytest.fixture(scope="module")
def old() -> UniMMAD:
    model, _ = new_model(RECIPE)
    assert isinstance(model, UniMMAD)
    with torch.no_grad():  # leaders at their start hardly differ
        for branch in branches_of(model):
            branch.routed.leaders.logits_LNE.mul_(50)
    return model.eval()


def grown_from(old: UniMMAD, **changes: int) -> UniMMAD:
    recipe = RECIPE.model_copy(update={"model": RECIPE.model.model_copy(update=changes)})
    model = build_method(recipe)
    assert isinstance(model, UniMMAD)
    take_over(model, old, ["gray", "rgb", "gray", "gray", "rgb", "depth"])
    return model.eval()


@pytest.mark.parametrize(
    ("old_leaders", "new", "unit", "expected"),
    [(4, 0, 1, "----"), (4, 2, 1, "--+--+"), (6, 4, 1, "---++---++"), (4, 4, 4, "----++++"), (4, 2, 2, "----++")],
)
def test_new_leaders_lie_at_even_distances_and_banks_stay_together(old_leaders, new, unit, expected):
    assert "".join("+" if one else "-" for one in is_new(old_leaders, new, unit)) == expected


def test_each_rank_of_a_group_gets_as_many_new_leaders():
    for ep_size in (1, 2, 4):
        chunks = torch.tensor(is_new(32, 12)).chunk(ep_size)
        assert {int(chunk.sum()) for chunk in chunks} == {12 // ep_size}


@pytest.mark.parametrize("changes", [{"leaders": 6}, {"leaders": 8, "banks": 2}, {"modality_slots": 6}])
def test_what_no_token_is_routed_to_and_no_image_is_in_changes_no_distance(old, changes):
    model = grown_from(old, **changes)
    with torch.no_grad():
        for branch in branches_of(model):
            new = torch.tensor(is_new(4, len(branch.routed.leaders.logits_LNE) - 4, 4 if "banks" in changes else 1))
            branch.routed.gate.linear.bias[new] = -100
        ours, theirs = model(*batch(0)), old(*batch(0))
    for our_Thw, their_Thw in zip(ours.distances, theirs.distances, strict=True):
        torch.testing.assert_close(our_Thw, their_Thw, rtol=0, atol=1e-6)


def test_a_new_slot_begins_as_the_first_of_its_kind(old):
    weight = grown_from(old, modality_slots=6).input_embedding.stem[0].weight
    assert torch.equal(weight[:, 12:15], weight[:, 3:6]), "rgb"
    assert torch.equal(weight[:, 15:18], weight[:, :3]), "no depth is known"


@pytest.mark.parametrize("banks", [1, 2])
def test_a_new_leader_begins_as_the_most_used_one_and_stands_back_where_old_images_are(old, banks):
    model = grown_from(old, leaders=4 * (1 + banks // 2) + 2 * (banks == 1), banks=banks)
    uses = []
    for seed in (1, 2):
        with torch.no_grad(), watched_gates(old) as used:
            old(*batch(seed))
            uses.append(used())
    begin_new_leaders(model, old, uses[0], uses[1], seed=0)
    for ours, theirs, of_new, of_old in zip(branches_of(model), branches_of(old), *uses, strict=True):
        new = torch.tensor(is_new(4, len(ours.routed.leaders.logits_LNE) - 4, 4 if banks == 2 else 1)).nonzero()[0]
        source = 0 if banks == 2 else int(of_new.use_L.argmax())
        begun, copied = ours.routed.leaders.logits_LNE[new[0]], theirs.routed.leaders.logits_LNE[source]
        torch.testing.assert_close(begun, copied, rtol=0, atol=0.15)
        if banks == 2:
            assert torch.equal(ours.bank.kernels_GNEEkk[1], theirs.bank.kernels_GNEEkk[0])

        def logit(gate: torch.nn.Linear, row: int, seen: Tensor) -> float:
            return float(gate.weight[row] @ seen + gate.bias[row])

        gates = ours.routed.gate.linear, theirs.routed.gate.linear
        above = [
            logit(gates[0], int(new[0]), seen) - logit(gates[1], source, seen)
            for seen in (of_new.condition_E, of_old.condition_E)
        ]
        assert above[0] > 0 > above[1]
        assert above[0] == pytest.approx(-above[1], abs=1e-3)


def test_without_old_images_a_new_leader_takes_the_last_place_that_new_ones_are_routed_to(old):
    model = grown_from(old, leaders=6)
    with torch.no_grad(), watched_gates(old) as used:
        old(*batch(1))
        uses = used()
        begin_new_leaders(model, old, uses, None, seed=0)
        for ours, theirs, use in zip(branches_of(model), branches_of(old), uses, strict=True):
            new = torch.tensor(is_new(4, 2)).nonzero()[0, 0]
            source = use.use_L.argmax()
            gate, old_gate = ours.routed.gate, theirs.routed.gate
            assert torch.equal(gate.linear.weight[new], old_gate.linear.weight[source])
            highest_K = old_gate.linear(use.condition_E).topk(old_gate.top_k).values
            below = highest_K[0] - highest_K[-1]
            torch.testing.assert_close(gate.linear.bias[new], old_gate.linear.bias[source] - below)


def test_a_step_moves_gates_leaders_and_new_banks_alone_and_distils_from_before(old):
    model = grown_from(old, leaders=8, banks=2)
    train_experts_alone(model, new_banks=[1])
    model.before = [copy.deepcopy(level).requires_grad_(False) for level in old.levels]
    model.distillation, model.old_leaders = 1.0, (0, 1, 2, 3)
    with torch.no_grad():
        for branch in branches_of(model):
            branch.routed.gate.linear.bias[4:] = -100
    model.train()
    assert model.training
    assert not any(part.training for part in model.children())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    facts = StepFacts(torch.ones(3), RECIPE.training)
    loss = model.loss(model(*batch(3)), facts)
    assert loss.parts["distillation"].item() == pytest.approx(0, abs=1e-5), "it is still what it was"
    with torch.no_grad():
        for branch in branches_of(model):
            branch.routed.gate.linear.bias[4:] = 0
            branch.routed.gate.linear.bias[0] += 3
    loss = model.loss(model(*batch(3)), facts)
    assert loss.parts["distillation"].item() > 0.01
    parts = loss.parts
    expected_total = parts["reconstruction"] + RECIPE.training.balance_floor * parts["balance"] + parts["distillation"]
    torch.testing.assert_close(loss.total, expected_total, msg="gates were balanced before")
    loss.total.backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    expected = {name for name in before if ".routed." in name or name.endswith("kernels_GNEEkk")}
    assert moved == expected
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert all(name.endswith("gate.linear.bias") for name in changed), "no running statistic moves"
    leaders = sum(before[name].numel() for name in expected if ".routed." in name)
    kernels = sum(before[name].numel() for name in expected if name.endswith("kernels_GNEEkk"))
    assert trained_parameters(model)[0] == leaders + kernels // 2, "old banks do not learn"
