"""Two collectives with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        # Every rank's loss depends on every rank's value, so the gradient sums over ranks too.
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class _ExchangeRows(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any, rows: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup
    ) -> Tensor:
        context.sent, context.received, context.group = sent, received, group
        return _all_to_all(rows, sent, received, group)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return _all_to_all(gradients[0], context.received, context.sent, context.group), None, None, None


def sum_over_ranks(value: Tensor) -> Tensor:
    """``value`` summed over all ranks, differentiable."""
    return _SumOverRanks.apply(value)


def exchange_rows(rows: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Uneven all-to-all, differentiable: the first ``sent[0]`` rows go to rank 0 of the group, and so on.

    Returns:
        The rows received, from rank 0 first; ``received`` says how many from each.
    """
    return _ExchangeRows.apply(rows, sent, received, group)


def _all_to_all(rows: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    output = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(output, rows.contiguous(), list(received), list(sent), group=group)
    return output
