"""What the micro-batches of some steps add up to over all ranks, brought together by one all_reduce.

Letters: L leaders, R rows = (level, branch) pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from unimmad.model.unimmad import Reconstruction
from unimmad.parallel.dispatch import CommStats
from unimmad.parallel.world import World
from unimmad.training.loss import Loss


@dataclass(frozen=True)
class Totals:
    """Over all ranks and the micro-batches since the last point."""

    losses: tuple[float, float, float]
    """Means: total, reconstruction, balance."""
    waited: float
    """Mean share of the time that ranks waited for data."""
    gradient_norm: float
    """Of the last step."""
    tokens: int
    comm_stats: CommStats
    peak_bytes: int
    """Of the rank that holds most."""
    usage_RL: Tensor
    """How often each leader was routed to."""


class StepTotals:
    """One rank's part; nothing is fetched from the device before ``over_ranks``."""

    def __init__(self, leaders: int) -> None:
        self._leaders = leaders
        self._losses: list[Tensor] = []
        self._usage_RL: Tensor | None = None
        self._traffic = CommStats()
        self._tokens = 0

    def add(self, output: Reconstruction, loss: Loss, comm_stats: CommStats) -> None:
        """Take in one micro-batch."""
        self._losses.append(torch.stack([loss.total.detach(), loss.reconstruction.detach(), loss.balance.detach()]))
        usage_RL = leader_usage(output, self._leaders)
        self._usage_RL = usage_RL if self._usage_RL is None else self._usage_RL + usage_RL
        self._traffic += comm_stats
        self._tokens += len(output.sample_of_token_T)

    def over_ranks(self, world: World, waited: float, squared_norm: Tensor, peak_bytes: int) -> Totals:
        """Add up over all ranks and begin again. Collective.

        Args:
            world: this rank among the others.
            waited: share of the time that this one waited for data.
            squared_norm: its share of the gradient's.
            peak_bytes: most memory that it held.
        """
        assert self._usage_RL is not None
        usage_RL = self._usage_RL
        counts = [waited, self._tokens, self._traffic.dispatched, self._traffic.routed]
        # Each rank has a place of its own, so that a sum can bring the largest.
        peaks = [peak_bytes if rank == world.rank else 0 for rank in range(world.size)]
        sums = torch.cat(
            [
                torch.stack(self._losses).mean(dim=0).double(),
                squared_norm.double()[None],
                torch.tensor([*counts, *peaks], dtype=torch.float64).to(world.device, non_blocking=True),
                usage_RL.flatten().double(),
            ]
        )
        if world.size > 1:
            dist.all_reduce(sums)
        self._losses, self._usage_RL, self._traffic, self._tokens = [], None, CommStats(), 0
        on_host = sums.cpu()
        total, reconstruction, balance, square, waits, tokens, dispatched, routed, *rest = on_host.tolist()
        return Totals(
            losses=(total / world.size, reconstruction / world.size, balance / world.size),
            waited=waits / world.size,
            gradient_norm=square**0.5,
            tokens=int(tokens),
            comm_stats=CommStats(int(dispatched), int(routed)),
            peak_bytes=int(max(rest[: world.size])),
            usage_RL=on_host[-usage_RL.numel() :].reshape(usage_RL.shape).long(),
        )


def leader_usage(output: Reconstruction, leaders: int) -> Tensor:
    """How often each leader was routed to, [R, L]."""
    return torch.stack(
        [
            torch.nn.functional.one_hot(routing.leaders_TK, leaders).sum(dim=(0, 1))
            for branches in output.routings
            for routing in branches
        ]
    )
