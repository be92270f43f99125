"""The training loss (METHOD, Loss), each part a sum over this rank's share of the global batch.

Letters: T tokens of this rank, L leaders, h x w positions of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from unimmad.model.routing import Routing
from unimmad.model.unimmad import Reconstruction

LOGSUMEXP_WEIGHT = 1e-4
CV_EPSILON = 1e-8


@dataclass(frozen=True)
class Loss:
    """``total`` is what to differentiate; each is a scalar whose mean over ranks is the global batch's value."""

    total: Tensor
    reconstruction: Tensor
    balance: Tensor


def unimmad_loss(
    output: Reconstruction,
    weight_of_token_T: Tensor,
    balance_scale: float,
    focal_gamma: float,
    world_size: int = 1,
) -> Loss:
    """Reconstruction plus balance loss over the global batch.

    Ranks hold different numbers of tokens, so each rank divides its sums by the global count over the world size:
    the average that data parallelism takes of the gradients is then that of one process with all tokens.
    """
    tokens = global_sum(weight_of_token_T.new_full((), len(weight_of_token_T)), world_size)
    share = world_size / tokens
    reconstruction = focal_reconstruction(output.distances, weight_of_token_T, focal_gamma) * share
    per_level = [sum(balance_loss(routing, share, world_size) for routing in branches) for branches in output.routings]
    balance = torch.stack([torch.as_tensor(level) for level in per_level]).mean()
    return Loss(reconstruction + balance_scale * balance, reconstruction, balance)


def focal_reconstruction(distances: Sequence[Tensor], weight_of_token_T: Tensor, gamma: float) -> Tensor:
    """Sum over tokens of weight x (sum over levels of the mean over positions of d x stopgrad(d)^gamma)."""
    per_token_T = sum((distance_Thw * distance_Thw.detach().pow(gamma)).mean(dim=(1, 2)) for distance_Thw in distances)
    return (per_token_T * weight_of_token_T).sum()


def balance_loss(routing: Routing, share: Tensor, world_size: int) -> Tensor:
    """cv^2 of the global batch's mean probabilities, plus the mean squared logsumexp.

    ``share`` is the world size over the global number of tokens.
    """
    local_mean_L = routing.probabilities_TL.sum(dim=0) * share
    global_mean_L = global_sum(local_mean_L.detach(), world_size) / world_size
    # The value is the global mean's. The gradient reaches this rank's tokens only: averaging over ranks sums them.
    mean_L = local_mean_L + (global_mean_L - local_mean_L).detach()
    cv_squared = mean_L.var(unbiased=False) / (mean_L.mean().square() + CV_EPSILON)
    logsumexp = routing.logits_TL.logsumexp(dim=1).square().sum() * share
    return cv_squared + LOGSUMEXP_WEIGHT * logsumexp


def balance_scale(epoch: int, epochs: int, floor: float) -> float:
    """How much the balance loss counts in this epoch (counted from 0)."""
    return max(1 - epoch / epochs, floor)


def global_sum(value: Tensor, world_size: int) -> Tensor:
    """``value`` summed over all ranks, without gradient."""
    if world_size == 1:
        return value
    total = value.clone()
    dist.all_reduce(total)
    return total
