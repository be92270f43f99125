"""Exchanges between ranks: rows with gradient, and what every rank holds gathered everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BYTES_OF_ID_AND_SCORE = 8
"""What ``all_to_all_scores`` sends for each pair."""


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


class _ExchangeScores(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        ids_SK: Tensor,
        scores_SK: Tensor,
        sent: Sequence[int],
        received: Sequence[int],
        group: dist.ProcessGroup,
    ) -> tuple[Tensor, Tensor]:
        context.sent, context.received, context.group = sent, received, group
        bits = torch.cat([ids_SK.int(), scores_SK.view(torch.int32)], dim=1)
        came_ids, came_scores = _all_to_all(bits, sent, received, group).chunk(2, dim=1)
        came_ids, came_scores = came_ids.long(), came_scores.contiguous().view(torch.float32)
        context.mark_non_differentiable(came_ids)
        return came_ids, came_scores

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[None, Tensor, None, None, None]:
        return None, _all_to_all(gradients[1], context.received, context.sent, context.group), None, None, None


def all_to_all(rows: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """Uneven all-to-all, differentiable: the first ``sent[0]`` rows go to rank 0 of the group, and so on.

    Returns:
        The rows received, from rank 0 first; ``received`` says how many from each.
    """
    return _ExchangeRows.apply(rows, sent, received, group)


def all_to_all_scores(
    ids_SK: Tensor, scores_SK: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """As ``all_to_all``, of int64 ids below 2^31 and float32 scores together; only the scores have a gradient.

    They travel side by side as 32-bit integers, a score's bits as they are, so nothing is rounded.
    """
    return _ExchangeScores.apply(ids_SK, scores_SK, sent, received, group)


def gather_rows(row_X: Tensor) -> Tensor:
    """Every rank's ``row_X``, all of one length, on each of them: [ranks, X]. Without gradient."""
    rows_RX = row_X.new_empty(dist.get_world_size(), len(row_X))
    # Its older name warns where there is a newer one.
    gather = dist.all_gather_single if hasattr(dist, "all_gather_single") else dist.all_gather_into_tensor
    gather(rows_RX, row_X[None])
    return rows_RX


def _all_to_all(rows: Tensor, sent: Sequence[int], received: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    output = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(output, rows.contiguous(), list(received), list(sent), group=group)
    return output
