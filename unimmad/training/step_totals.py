"""What the micro-batches of some steps add up to over all ranks, brought together by one all_reduce.

Letters: L leaders, R rows = (level, branch) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from unimmad.model.method import Loss
from unimmad.model.routing import Routing
from unimmad.parallel.dispatch import CommStats
from unimmad.parallel.world import World


@dataclass(frozen=True)
class Totals:
    """Over all ranks and the micro-batches since the last point."""

    losses: dict[str, float]
    """Means by name, the total first."""
    waited: float
    """Mean share of the time that ranks waited for data."""
    gradient_norm: float
    """Of the last step."""
    tokens: int
    comm_stats: CommStats
    peak_bytes: int
    """Of the rank that holds most."""
    usage_RL: Tensor
    """How often each leader was routed to; no rows where the method routes nothing."""


class StepTotals:
    """One rank's part; nothing is fetched from the device before ``over_ranks``."""

    def __init__(self, leaders: int) -> None:
        self._leaders = leaders
        self._losses: list[dict[str, Tensor]] = []
        self._usage_RL: Tensor | None = None
        self._traffic = CommStats()
        self._tokens = 0

    def add(self, loss: Loss, routings: Sequence[Sequence[Routing]], tokens: int, comm_stats: CommStats) -> None:
        """Take in one micro-batch; ``routings`` by level, then branch."""
        self._losses.append({name: value.detach() for name, value in {"total": loss.total, **loss.parts}.items()})
        usage_RL = leader_usage(routings, self._leaders, loss.total.device)
        self._usage_RL = usage_RL if self._usage_RL is None else self._usage_RL + usage_RL
        self._traffic += comm_stats
        self._tokens += tokens

    def over_ranks(self, world: World, waited: float, squared_norm: Tensor, peak_bytes: int) -> Totals:
        """Add up over all ranks and begin again. Collective.

        Args:
            world: this rank among the others.
            waited: share of the time that this one waited for data.
            squared_norm: its share of the gradient's.
            peak_bytes: most memory that it held.
        """
        assert self._usage_RL is not None
        usage_RL, names = self._usage_RL, list(self._losses[0])
        counts = [waited, self._tokens, self._traffic.dispatched, self._traffic.routed]
        # Each rank has a place of its own, so that a sum can bring the largest.
        peaks = [peak_bytes if rank == world.rank else 0 for rank in range(world.size)]
        sums = torch.cat(
            [
                torch.stack([torch.stack(list(losses.values())) for losses in self._losses]).mean(dim=0).double(),
                squared_norm.double()[None],
                torch.tensor([*counts, *peaks], dtype=torch.float64).to(world.device, non_blocking=True),
                usage_RL.flatten().double(),
            ]
        )
        if world.size > 1:
            dist.all_reduce(sums)
        self._losses, self._usage_RL, self._traffic, self._tokens = [], None, CommStats(), 0
        on_host = sums.cpu()
        losses, others = on_host[: len(names)] / world.size, on_host[len(names) :]
        square, waits, tokens, dispatched, routed, *rest = others.tolist()
        return Totals(
            losses=dict(zip(names, losses.tolist(), strict=True)),
            waited=waits / world.size,
            gradient_norm=square**0.5,
            tokens=int(tokens),
            comm_stats=CommStats(int(dispatched), int(routed)),
            peak_bytes=int(max(rest[: world.size])),
            usage_RL=others[len(others) - usage_RL.numel() :].reshape(usage_RL.shape).long(),
        )


def leader_usage(routings: Sequence[Sequence[Routing]], leaders: int, device: torch.device) -> Tensor:
    """How often each leader was routed to, [R, L] on ``device``."""
    rows = [
        torch.nn.functional.one_hot(routing.leaders_TK, leaders).sum(dim=(0, 1))
        for branches in routings
        for routing in branches
    ]
    return torch.stack(rows) if rows else torch.zeros(0, leaders, dtype=torch.int64, device=device)
