"""UniMMAD's training loss (METHOD, Loss), each part a sum over this rank's share of the global batch.

Letters: T tokens of this rank, G gates (of all branches of all levels), L leaders, h x w positions of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimmad.model.method import Loss, alone
from unimmad.model.routing import Routing

if TYPE_CHECKING:
    from unimmad.model.unimmad import Reconstruction

LOGSUMEXP_WEIGHT = 1e-4
CV_EPSILON = 1e-8


def unimmad_loss(
    output: Reconstruction,
    weight_of_token_T: Tensor,
    balance_scale: float,
    focal_gamma: float,
    world_size: int = 1,
    global_sum: Callable[[Tensor], Tensor] = alone,
    distillation: float = 0.0,
) -> Loss:
    """Reconstruction plus balance loss over the global batch, plus ``distillation`` times ``distilled`` where the
    output has what was said before.

    Ranks hold different numbers of tokens, so each rank divides its sums by the global count over the world size:
    the average that data parallelism takes of the gradients is then that of one process with all tokens.
    """
    gates = [routing for branches in output.routings for routing in branches]
    mean_GL, share = mean_probabilities(gates, len(weight_of_token_T), world_size, global_sum)
    reconstruction = focal_reconstruction(output.distances, weight_of_token_T, focal_gamma) * share
    balance = balance_losses(gates, mean_GL, share).sum() / len(output.routings)
    total = reconstruction + balance_scale * balance
    parts = {"reconstruction": reconstruction, "balance": balance}
    if output.before is not None:
        parts["distillation"] = distilled(output, weight_of_token_T, focal_gamma) * share
        total = total + distillation * parts["distillation"]
    return Loss(total, parts)


def distilled(output: Reconstruction, weight_of_token_T: Tensor, gamma: float) -> Tensor:
    """Sum over tokens of how far reconstructions are from those before, as ``focal_reconstruction`` has it, plus,
    summed over gates and averaged over levels, the divergence of the gate's probabilities from those before; leaders
    that came in since are left out of them."""
    assert output.before is not None
    apart = focal_reconstruction(output.before.distances, weight_of_token_T, gamma)
    diverged_T = torch.zeros_like(weight_of_token_T)
    for now, then in zip(_gates(output.routings), _gates(output.before.routings), strict=True):
        logits_TL = now.logits_TL[:, list(output.before.leaders)]
        log_ratio_TL = then.logits_TL.log_softmax(1) - logits_TL.log_softmax(1)
        diverged_T = diverged_T + (then.probabilities_TL * log_ratio_TL).sum(1)
    return apart + (diverged_T * weight_of_token_T).sum() / len(output.routings)


def _gates(routings: Sequence[Sequence[Routing]]) -> list[Routing]:
    return [routing for branches in routings for routing in branches]


def focal_reconstruction(distances: Sequence[Tensor], weight_of_token_T: Tensor, gamma: float) -> Tensor:
    """Sum over tokens of weight x (sum over levels of the mean over positions of d x stopgrad(d)^gamma)."""
    per_token_T = sum((distance_Thw * distance_Thw.detach().pow(gamma)).mean(dim=(1, 2)) for distance_Thw in distances)
    return (per_token_T * weight_of_token_T).sum()


def mean_probabilities(
    gates: Sequence[Routing], tokens: int, world_size: int, global_sum: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Each gate's mean probabilities over the global batch, [G, L], from one sum over ranks for all of them.

    Returns:
        Them, and the share that a sum over this rank's ``tokens`` counts with: the world size over all ranks' tokens.
    """
    local_GL = torch.stack([routing.probabilities_TL.sum(dim=0) for routing in gates])
    sums = global_sum(torch.cat([local_GL.detach().flatten(), local_GL.new_full((1,), tokens)]))
    global_GL, all_tokens = sums[:-1].view_as(local_GL), sums[-1]
    share = world_size / all_tokens
    local_mean_GL = local_GL * share
    # The value is the global mean's. The gradient reaches this rank's tokens only: averaging over ranks sums them.
    return local_mean_GL + (global_GL / all_tokens - local_mean_GL).detach(), share


def balance_losses(gates: Sequence[Routing], mean_GL: Tensor, share: Tensor) -> Tensor:
    """Of each gate, [G]: cv^2 of its ``mean_probabilities``, plus the mean squared logsumexp."""
    cv_squared_G = mean_GL.var(dim=1, unbiased=False) / (mean_GL.mean(dim=1).square() + CV_EPSILON)
    logits_GTL = torch.stack([routing.logits_TL for routing in gates])
    return cv_squared_G + LOGSUMEXP_WEIGHT * share * logits_GTL.logsumexp(dim=2).square().sum(dim=1)


def balance_scale(epoch: int, epochs: int, floor: float) -> float:
    """How much the balance loss counts in this epoch (counted from 0)."""
    return max(1 - epoch / epochs, floor)
