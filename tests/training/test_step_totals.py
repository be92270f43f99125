"""What ranks add up for the log: the right sums, in one exchange."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from model.test_loss import LEADERS, output_of
from parallel.ranks import run_on_ranks

from unimmad.model.method import Loss
from unimmad.parallel.dispatch import CommStats
from unimmad.parallel.world import World
from unimmad.training.step_totals import StepTotals, leader_usage

BYTES = 2**53 - 4
"""Whole numbers up to here are exact."""


def totals_of_rank(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    totals = StepTotals(LEADERS)
    usage_RL = 0
    for part in range(2):
        output = output_of(3 + rank, seed=part)
        usage_RL = usage_RL + leader_usage(output.routings, LEADERS, torch.device("cpu"))
        loss = Loss(torch.tensor(1.0 + rank), {"first": torch.tensor(0.5 * part), "second": torch.tensor(0.25)})
        totals.add(loss, output.routings, 3 + rank, CommStats(10 + rank, 2**40 + rank))
    calls = []
    plain = dist.all_reduce
    with patch.object(dist, "all_reduce", lambda *argv, **named: calls.append(1) or plain(*argv, **named)):
        world = World(rank, world_size, rank, torch.device("cpu"))
        found = totals.over_ranks(world, 0.1 * rank, torch.tensor(8.0 * (1 + rank)), BYTES if rank else 2**31)
    return {
        "own usage": usage_RL,
        "usage": found.usage_RL,
        "calls": torch.tensor(len(calls)),
        "numbers": torch.tensor([*found.losses.values(), found.waited, found.gradient_norm], dtype=torch.float64),
        "counts": torch.tensor([found.tokens, found.comm_stats.dispatched, found.comm_stats.routed, found.peak_bytes]),
    }


def test_sums_means_and_the_largest_by_one_all_reduce(tmp_path):
    ranks = run_on_ranks(totals_of_rank, 2, tmp_path)
    for found in ranks:
        assert found["calls"] == 1
        np.testing.assert_allclose(found["numbers"], [1.5, 0.25, 0.25, 0.05, 24**0.5], rtol=1e-7)
        assert found["counts"].tolist() == [14, 42, 2**42 + 2, BYTES]
        np.testing.assert_array_equal(found["usage"], ranks[0]["own usage"] + ranks[1]["own usage"])
