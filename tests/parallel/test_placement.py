"""Leaders put where they live: same numbers, same portable names, and shares that make up the whole."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor

from unimmad.config import ModelSettings, load_recipe
from unimmad.methods.registry import new_model
from unimmad.model.growing import train_experts_alone
from unimmad.model.unimmad import UniMMAD
from unimmad.parallel.moe import LeaderMoE
from unimmad.parallel.placement import effective_ep_size, fqn, place_leaders, placed_parameters

COUNTS, SLOTS = (1, 3, 1), (0, 0, 1, 3, 2)


def settings(*overrides: str) -> ModelSettings:
    return load_recipe("tiny", list(overrides)).model


@pytest.fixture(scope="module", params=[1, 4], ids=["one bank", "four banks"])
def local(request) -> UniMMAD:
    return new_model(load_recipe("tiny", [f"model.banks={request.param}"]), seed=0)[0]


def placed(local: UniMMAD, ep_size: int, rank: int) -> UniMMAD:
    model = copy.deepcopy(local)
    place_leaders(model, ep_size, rank)
    return model


def step(model: UniMMAD) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """Maps, routed leaders and every gradient, by portable name."""
    images = torch.randn(sum(COUNTS), 3, 64, 64, generator=torch.Generator().manual_seed(3))
    output = model(images, COUNTS, torch.tensor(SLOTS))
    sum(distance.square().sum() for distance in output.distances).backward()
    gradients = {fqn(name): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return model.maps(output).detach(), [r.leaders_TK for level in output.routings for r in level], gradients


@pytest.mark.parametrize(
    ("asked", "world", "overrides", "effective"),
    [
        (1, 4, (), 1),
        (4, 4, (), 4),
        (4, 8, (), 4),
        (4, 1, (), 1),
        (4, 2, (), 2),
        (4, 6, (), 2),
        (16, 16, (), 8),
        (3, 3, (), 1),
        (4, 4, ("model.banks=2",), 2),
        (4, 4, ("model.banks=8",), 4),
        (2, 4, ("model.leaders=6", "model.banks=3"), 1),
    ],
)
def test_the_effective_ep_size_divides_all_and_is_told_once_where_it_differs(asked, world, overrides, effective):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert effective_ep_size(asked, world, settings(*overrides)) == effective
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == (0 if effective == asked else 1)
    for message in messages:
        assert f"ep_size {asked} does not fit world size {world}" in message
        assert f"leaders{', ' if overrides else ':'}" in message
        assert message.endswith(f"using {effective}")


@pytest.mark.parametrize("asked", [0, -4])
def test_an_ep_size_below_one_is_refused(asked):
    with pytest.raises(ValueError, match=f"ep_size {asked} .* must be 1 or more"):
        effective_ep_size(asked, 4, settings())


def test_placing_keeps_every_number(local):
    parallel = placed(local, ep_size=1, rank=0)
    assert sum(isinstance(module, LeaderMoE) for module in parallel.modules()) == 9
    maps, leaders, gradients = step(copy.deepcopy(local))
    maps_placed, leaders_placed, gradients_placed = step(parallel)
    torch.testing.assert_close(maps_placed, maps, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(leaders_placed, leaders, strict=True))
    assert gradients_placed.keys() == gradients.keys()
    for name, gradient in gradients.items():
        difference = (gradients_placed[name] - gradient).norm()
        assert difference <= 1e-5 * gradient.norm() + 1e-9, name


@pytest.mark.parametrize("ep_size", [1, 2, 4])
def test_portable_names_are_those_of_the_local_form_in_its_order(local, ep_size):
    parallel = placed(local, ep_size, rank=1)
    assert sorted(map(fqn, parallel.state_dict())) == sorted(local.state_dict())
    trainable = [name for name, parameter in local.named_parameters() if parameter.requires_grad]
    assert sorted(piece.name for piece in placed_parameters(parallel, ep_size, 1)) == sorted(trainable)


def test_local_names_are_portable_already(local):
    assert all(fqn(name) == name for name in local.state_dict())


@pytest.mark.parametrize("ep_size", [1, 2, 4])
def test_the_pieces_of_a_group_make_up_the_whole(local, ep_size):
    """The ranks of the second group: their place in the group is their rank less the group's first."""
    whole = dict(local.named_parameters())
    filled = {name: torch.full((parameter.numel(),), torch.nan) for name, parameter in whole.items()}
    for rank in range(ep_size, 2 * ep_size):
        for piece in placed_parameters(placed(local, ep_size, rank), ep_size, rank):
            assert piece.shape == tuple(whole[piece.name].shape)
            values = piece.parameter.detach().flatten()
            assert values.numel() == torch.Size(piece.shape).numel() // (ep_size if piece.expert_parallel else 1)
            filled[piece.name][piece.offset : piece.offset + values.numel()] = values
    for name, parameter in whole.items():
        if parameter.requires_grad:
            assert torch.equal(filled[name], parameter.detach().flatten()), name


def test_leaders_are_expert_parallel_and_banks_only_where_there_are_several(local):
    several = len(local.levels[0].branches[0].bank.kernels_GNEEkk) > 1
    for piece in placed_parameters(placed(local, 2, 0), 2, 0):
        of_experts = piece.name.endswith("routed.leaders.logits_LNE") or (several and ".bank." in piece.name)
        assert piece.expert_parallel == of_experts, piece.name
        if of_experts:
            assert piece.parameter.group_name == "ep_size_2"


def test_where_experts_alone_learn_frozen_banks_stay_with_their_ranks_and_old_ones_as_they_are(local):
    growing = copy.deepcopy(local)
    banks = growing.settings.banks
    train_experts_alone(growing, new_banks=[banks - 1] if banks > 1 else [])
    _, _, gradients = step(placed(growing, ep_size=1, rank=0))
    of_banks = [gradient.flatten(1).any(1) for name, gradient in gradients.items() if name.endswith("kernels_GNEEkk")]
    if banks > 1:  # to the new one of some branch a token is routed
        assert torch.stack(of_banks).any(0).tolist() == [False, False, False, True]
    else:
        assert not of_banks
    frozen = copy.deepcopy(local)
    train_experts_alone(frozen)
    parallel = placed(frozen, ep_size=2, rank=1)
    assert {piece.name.split(".")[4] for piece in placed_parameters(parallel, 2, 1)} == {"routed"}
    for piece in placed_parameters(parallel, 2, 1, with_frozen=True):
        if ".bank." in piece.name and banks > 1:
            assert not piece.parameter.requires_grad
            assert piece.expert_parallel
            assert (piece.shape[0], piece.offset) == (banks, piece.parameter.numel())
