"""How far a run is from the reference, and how far rounding alone may bring it.

Measure: norm of the difference over norm of the reference, tensor by tensor, floor 1e-6 of the largest tensor's norm.
Bound: 1e-5; for a tensor that the reference itself, computed in parts, does not give to 1e-5, twice that difference,
since what is compared are two draws of the same rounding. A gate's gradient is what is left of scores near 1 that
cancel each other: the rounding of two of them is allowed in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from parity.record import Record
from torch import Tensor

BOUND = 1e-5
BF16_BOUND = 2.0**-8
"""bfloat16 keeps 8 bits: one rounding is up to 2^-9, and what is compared are two of them."""
SCORES_ROUNDING = 2 * 2.0**-23
"""Of two float32 near 1, absolute."""
FLOOR = 1e-6
SMALLEST_MARGIN = 1e-4
"""Routing must not depend on rounding: the batch is chosen without nearer ties."""
KINDS = ("gate", "leaders", "bank", "fixed expert", "dense")


@dataclass(frozen=True)
class Worst:
    """The tensor of a kind that differs most."""

    difference: float
    """Relative; of those tensors to which the plain bound applies."""
    over_bound: float
    """The largest difference over its own bound, over all tensors: above 1 is a failure."""
    name: str
    """Of the tensor with the latter."""
    relaxed: int
    """Tensors whose bound is the reference's own difference."""


@dataclass(frozen=True)
class Comparison:
    loss: float
    loss_bound: float
    gradient_norm: float
    gradient_norm_bound: float
    gradients: dict[str, Worst]
    weights: dict[str, Worst]
    same_routing: bool
    margin: float
    replicas_equal: bool
    dispatched_over_routed: float | None

    @property
    def problems(self) -> list[str]:
        """What is wrong, in words; empty where parity holds."""
        found = [
            f"{what} of {worst.name} is {worst.over_bound:.1f} times its bound away"
            for what, kinds in (("gradient", self.gradients), ("weight", self.weights))
            for worst in kinds.values()
            if not worst.over_bound <= 1
        ]
        if not self.loss <= self.loss_bound:
            found.append(f"the loss differs by {self.loss:.1e}")
        if not self.gradient_norm <= self.gradient_norm_bound:
            found.append(f"the norm of the gradient differs by {self.gradient_norm:.1e}")
        if not self.same_routing:
            found.append("tokens are routed to other leaders")
        if self.margin < SMALLEST_MARGIN:
            found.append(f"a near-tie ({self.margin:.1e}) in the routing: choose another batch")
        if not self.replicas_equal:
            found.append("ranks hold different copies of dense weights")
        return found


def compare(ours: Record, reference: Record, in_microbatches: Sequence[Record], bound: float = BOUND) -> Comparison:
    losses = np.array(reference.facts.losses)
    own_loss = max(float(np.max(np.abs(np.array(part.facts.losses) - losses) / losses)) for part in in_microbatches)
    norm = reference.facts.gradient_norm
    own_norm = max(abs(part.facts.gradient_norm - norm) / norm for part in in_microbatches)
    routed = ours.facts.routed
    return Comparison(
        loss=float(np.max(np.abs(np.array(ours.facts.losses) - losses) / losses)),
        loss_bound=max(bound, 2 * own_loss),
        gradient_norm=abs(ours.facts.gradient_norm - norm) / norm,
        gradient_norm_bound=max(bound, 2 * own_norm),
        gradients=worst_by_kind(
            ours.gradients, reference.gradients, [part.gradients for part in in_microbatches], bound
        ),
        weights=worst_by_kind(ours.weights, reference.weights, [part.weights for part in in_microbatches], bound),
        same_routing=len(ours.routing) == len(reference.routing)
        and all(np.array_equal(a, b) for a, b in zip(ours.routing, reference.routing, strict=True)),
        margin=min(ours.margin, reference.margin),
        replicas_equal=ours.facts.replicas_equal,
        dispatched_over_routed=ours.facts.dispatched / routed if routed else None,
    )


def worst_by_kind(
    ours: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    in_microbatches: Sequence[Mapping[str, Tensor]],
    bound: float = BOUND,
) -> dict[str, Worst]:
    """Every kind's worst tensor.

    Raises:
        ValueError: the two do not hold the same tensors.
    """
    if missing := sorted((ours.keys() ^ reference.keys()) - _counters(reference)):
        raise ValueError(f"only one of the two runs has {', '.join(missing[:5])}")
    own = [differences(part, reference) for part in in_microbatches]
    scales = _scales(reference)
    by_kind: dict[str, list[tuple[float, float, float, str]]] = {}
    for name, difference in differences(ours, reference).items():
        reference_differs = max(part[name] for part in own)
        allowed = bound if reference_differs <= bound / 2 else 2 * reference_differs
        if kind_of(name) == "gate":
            # The gradient of its weight is that of its bias times the tokens' conditions: as well conditioned.
            allowed = max(allowed, SCORES_ROUNDING / scales[name.replace(".weight", ".bias")])
        by_kind.setdefault(kind_of(name), []).append((difference / allowed, difference, allowed, name))
    result = {}
    for kind, found in by_kind.items():
        over_bound, _, _, name = max(found)
        strict = [difference for _, difference, allowed, _ in found if allowed == bound]
        result[kind] = Worst(max(strict, default=0.0), over_bound, name, len(found) - len(strict))
    return result


def differences(ours: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, float]:
    """The measure, by tensor; counters are left out."""
    return {
        name: float((ours[name].double() - reference[name].double()).norm()) / scale
        for name, scale in _scales(reference).items()
    }


def _scales(reference: Mapping[str, Tensor]) -> dict[str, float]:
    """What a difference is held against, by tensor."""
    norms = {name: float(tensor.double().norm()) for name, tensor in reference.items() if tensor.is_floating_point()}
    floor = FLOOR * max(norms.values())
    return {name: max(norm, floor) for name, norm in norms.items()}


def kind_of(name: str) -> str:
    parts = {".gate.": "gate", ".leaders.": "leaders", ".bank.": "bank", ".fixed_EEkk": "fixed expert"}
    return next((kind for part, kind in parts.items() if part in name), "dense")


def _counters(tensors: Mapping[str, Tensor]) -> set[str]:
    return {name for name, tensor in tensors.items() if not tensor.is_floating_point()}
