"""Continual learning: gates and leaders learn on, more leaders come in, everything else stays as it is.

Leaders that come in lie among the others at even distances, so that each expert-parallel group of ranks, and each bank
that is shared, gets as many of them as every other; where they lie depends on the numbers of leaders alone.

Letters: L leaders, K routed leaders, N base kernels of a bank, G banks, E embed channels, T tokens (sample, modality),
S slots.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from unimmad.model.cross_moe import CrossMoE, LocalRouting, MiMoEBranch
from unimmad.model.method import Method
from unimmad.model.routing import Gate, Routing
from unimmad.model.unimmad import InputEmbedding, UniMMAD

LOGIT_NOISE = 0.02
"""Standard deviation of what sets a new leader's logits apart from those that it begins with."""
LEAST_APART = 0.05
"""Conditions of new and old images count as at least so far apart, as a share of their length."""


@dataclass(frozen=True)
class GateUse:
    """What one gate said of some images."""

    condition_E: Tensor
    """Mean of what the router saw."""
    use_L: Tensor
    """Mean score of each leader, 0 where a token was not routed to it."""


def branches_of(model: UniMMAD) -> list[MiMoEBranch]:
    """Level by level, the finest first, then by kernel size."""
    return [
        branch for level in cast(list[CrossMoE], model.levels) for branch in cast(list[MiMoEBranch], level.branches)
    ]


def is_new(old: int, new: int, unit: int = 1) -> list[bool]:
    """Of ``old + new`` leaders in their order, which of them are new.

    Args:
        old: how many there were.
        new: how many come in.
        unit: leaders that stay side by side, those of a bank; it divides both.
    """
    if not new:
        return [False] * old
    blocks = math.gcd(old // unit, new // unit)
    return ([False] * (old // blocks) + [True] * (new // blocks)) * blocks


def train_experts_alone(model: UniMMAD, new_banks: Sequence[int] = ()) -> None:
    """From now on gates, leaders and the base kernels of ``new_banks`` learn, and nothing else changes: no weight, and
    no running statistic."""
    model.requires_grad_(False)
    model.experts_alone = True
    for branch in branches_of(model):
        cast(LocalRouting, branch.routed).requires_grad_(True)
        if new_banks:
            branch.bank.kernels_GNEEkk.requires_grad_(True)
            branch.bank.trained_G = tuple(bank in new_banks for bank in range(len(branch.bank.kernels_GNEEkk)))
    model.train(model.training)


def trained_parameters(model: Method) -> tuple[int, int]:
    """Values that learn, and all values, the teacher's included; of the local form."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if isinstance(model, UniMMAD):
        for branch in branches_of(model):
            kernels_GNEEkk = branch.bank.kernels_GNEEkk
            if kernels_GNEEkk.requires_grad and branch.bank.trained_G is not None:
                trained -= kernels_GNEEkk[0].numel() * branch.bank.trained_G.count(False)
    return trained, sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def watched_gates(model: UniMMAD) -> Iterator[Callable[[], list[GateUse]]]:
    """While it lasts, takes in what all gates of a local model see and decide; gives it, gate by gate."""
    gates = [cast(LocalRouting, branch.routed).gate for branch in branches_of(model)]
    seen: list[list[tuple[Tensor, Tensor]]] = [[] for _ in gates]

    def watch(number: int) -> Callable[[nn.Module, tuple[Tensor, ...], Routing], None]:
        def take_in(_: nn.Module, conditions: tuple[Tensor, ...], routing: Routing) -> None:
            use_TL = torch.zeros_like(routing.probabilities_TL).scatter(1, routing.leaders_TK, routing.scores_TK)
            seen[number].append((conditions[0].detach(), use_TL.detach()))

        return take_in

    handles = [gate.register_forward_hook(watch(number)) for number, gate in enumerate(gates)]
    try:
        yield lambda: [GateUse(*(torch.cat(parts).mean(0) for parts in zip(*of_gate, strict=True))) for of_gate in seen]
    finally:
        for handle in handles:
            handle.remove()


def take_over(grown: UniMMAD, old: UniMMAD, kind_of_slot: Sequence[str] = ()) -> None:
    """Fill a model that has more leaders, banks or slots, whose new leaders and banks stay as they are, with ``old``.

    Args:
        grown: of the same settings but for those.
        old: what it grows from.
        kind_of_slot: what images of each slot are (rgb, gray, depth), where that is known; a new slot begins as the
            first old one of its kind, and as the first of all where there is none. Where its modality is missing it
            adds nothing, so that all images that the old model knows keep their maps.
    """
    wider = {*_names_of_experts(grown), *_names_of_slots(grown)}
    values = old.state_dict()
    with torch.no_grad():
        for name, tensor in grown.state_dict().items():
            if name not in wider:
                tensor.copy_(values[name])
        for ours, theirs in zip(branches_of(grown), branches_of(old), strict=True):
            _take_over_experts(ours, theirs)
        _take_over_slots(grown.input_embedding, old.input_embedding, kind_of_slot)


def begin_new_leaders(
    grown: UniMMAD, old: UniMMAD, of_new: Sequence[GateUse], of_old: Sequence[GateUse] | None, seed: int
) -> None:
    """Give each new leader the kernel and the gate's row of one that the new images are routed to, most used first,
    and tilt the row towards what tells new images from old ones, so that old ones stay with the old leader.

    A bank of its own begins as the most used bank, and its leaders as that bank's.

    Args:
        grown: after ``take_over``.
        old: what it grows from.
        of_new: what the gates of ``old`` said of new images.
        of_old: the same of old images; None: there are none, and new leaders step back until they
            take the place of the last leader that new images are routed to, not of the one that they begin as.
        seed: of the noise that tells leaders apart that begin alike.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    with torch.no_grad():
        for number, (ours, theirs) in enumerate(zip(branches_of(grown), branches_of(old), strict=True)):
            new_E = of_new[number].condition_E
            gate = cast(LocalRouting, theirs.routed).gate
            tilt = _stepped_back(gate, new_E) if of_old is None else _tilt(new_E, of_old[number].condition_E)
            _begin_experts(ours, theirs, of_new[number].use_L, tilt, generator)


def _names_of_experts(model: UniMMAD) -> Iterator[str]:
    for name, _ in model.named_parameters():
        if ".routed." in name or name.endswith(".bank.kernels_GNEEkk"):
            yield name


def _names_of_slots(model: UniMMAD) -> list[str]:
    return [f"input_embedding.{name}" for name in ("embedding_CHW", "stem.0.weight", "shortcut.weight")]


def _experts(branch: MiMoEBranch) -> tuple[Gate, Tensor, Tensor]:
    routed = cast(LocalRouting, branch.routed)
    return routed.gate, routed.leaders.logits_LNE, branch.bank.kernels_GNEEkk


def _unit(ours: MiMoEBranch, theirs: MiMoEBranch) -> int:
    """Leaders that stay side by side: a bank's, where banks come in."""
    more_banks = len(ours.bank.kernels_GNEEkk) > len(theirs.bank.kernels_GNEEkk)
    return cast(LocalRouting, theirs.routed).leaders.leaders_per_bank if more_banks else 1


def _places(ours: MiMoEBranch, theirs: MiMoEBranch) -> tuple[Tensor, Tensor]:
    """Where the new leaders are, bool [L]; the new banks, bool [G]."""
    (_, our_logits, our_banks), (_, their_logits, their_banks) = _experts(ours), _experts(theirs)
    old, banks = len(their_logits), len(their_banks)
    new_L = torch.tensor(is_new(old, len(our_logits) - old, _unit(ours, theirs)))
    new_G = torch.tensor(is_new(banks, len(our_banks) - banks))
    return new_L, new_G


def _take_over_experts(ours: MiMoEBranch, theirs: MiMoEBranch) -> None:
    new_L, new_G = _places(ours, theirs)
    (gate, logits_LNE, kernels), (old_gate, old_logits, old_kernels) = _experts(ours), _experts(theirs)
    gate.linear.weight[~new_L] = old_gate.linear.weight
    gate.linear.bias[~new_L] = old_gate.linear.bias
    logits_LNE[~new_L] = old_logits
    kernels[~new_G] = old_kernels


def _begin_experts(
    ours: MiMoEBranch,
    theirs: MiMoEBranch,
    use_L: Tensor,
    tilt: tuple[Tensor, Tensor],
    generator: torch.Generator,
) -> None:
    new_L, new_G = _places(ours, theirs)
    (gate, logits_LNE, kernels), (old_gate, old_logits, old_kernels) = _experts(ours), _experts(theirs)
    places = new_L.nonzero().flatten().tolist()
    use_GC = use_L.view(len(old_kernels), -1)  # of each bank's leaders
    if bool(new_G.any()):
        banks = use_GC.sum(1).argsort(descending=True, stable=True)
        chosen_banks = banks[torch.arange(int(new_G.sum())) % len(banks)]
        kernels[new_G] = old_kernels[chosen_banks]
        first = chosen_banks * use_GC.shape[1]
        sources = (first[:, None] + torch.arange(use_GC.shape[1])).flatten()
    else:
        of_banks = use_GC.argsort(dim=1, descending=True, stable=True)
        of_banks += torch.arange(len(use_GC))[:, None] * use_GC.shape[1]
        a_bank = len(places) // len(use_GC)
        sources = of_banks[:, torch.arange(a_bank) % use_GC.shape[1]].flatten()
    logits_LNE[new_L] = old_logits[sources]
    logits_LNE[new_L] += LOGIT_NOISE * torch.randn(logits_LNE[new_L].shape, generator=generator)
    towards_E, back = tilt
    gate.linear.weight[new_L] = old_gate.linear.weight[sources] + towards_E
    gate.linear.bias[new_L] = old_gate.linear.bias[sources] + back


def _stepped_back(gate: Gate, new_E: Tensor) -> tuple[Tensor, Tensor]:
    """The same where no old image is: the highest logit at the new images' mean falls to the lowest that is routed to.
    A leader that stood back farther would never be routed to, and so never learn."""
    highest_K = gate.linear(new_E).topk(gate.top_k).values
    return torch.zeros_like(new_E), highest_K[-1] - highest_K[0]


def _tilt(new_E: Tensor, old_E: Tensor) -> tuple[Tensor, Tensor]:
    """What is added to a row and its bias: the logit rises by 1 at the new images' mean and falls by 1 at the old
    ones'."""
    apart_E = new_E - old_E
    length = apart_E.square().sum().clamp_min((LEAST_APART * new_E.norm()) ** 2 + torch.finfo(apart_E.dtype).tiny)
    return 2 * apart_E / length, -(apart_E @ (new_E + old_E)) / length


def _take_over_slots(ours: InputEmbedding, theirs: InputEmbedding, kind_of_slot: Sequence[str]) -> None:
    pairs: list[tuple[Any, Any, int]] = [
        (ours.embedding_CHW, theirs.embedding_CHW, 0),
        (ours.stem[0].weight, theirs.stem[0].weight, 1),
        (ours.shortcut.weight, theirs.shortcut.weight, 1),
    ]
    known = kind_of_slot[: theirs.slots]
    for mine, old, dim in pairs:
        mine.narrow(dim, 0, 3 * theirs.slots).copy_(old)
        for slot in range(theirs.slots, ours.slots):
            here = mine.narrow(dim, 3 * slot, 3)
            if dim == 0:
                here.zero_()
                continue
            kind = kind_of_slot[slot] if slot < len(kind_of_slot) else ""
            like = known.index(kind) if kind and kind in known else 0
            here.copy_(old.narrow(dim, 3 * like, 3))
