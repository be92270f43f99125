"""Nearest neighbours by matrix products, without a matrix of all distances; exact, on any device.

Letters: n queries, m rows of the bank, D features, k neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_BYTES = 64 * 2**20
"""What a part of the matrix of distances may take."""
ROWS_OF_A_BLOCK = 16384
"""Of the bank, at most; products of wide matrices are the fast ones."""


def nearest_neighbours(
    queries_nD: Tensor,
    bank_mD: Tensor,
    neighbours: int,
    block_bytes: int = BLOCK_BYTES,
    among_m: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The nearest rows of the bank to each query, the nearest first.

    Blocks find them by |b|^2 - 2 q.b, whose rounding would be large beside a small distance; the distances that come
    back are those of the differences, so a row that is in the bank is at 0.

    Args:
        queries_nD: float32.
        bank_mD: float32, m is ``neighbours`` or more.
        neighbours: k.
        block_bytes: what the distances at hand take at most.
        among_m: which rows count, k of them or more; None: all.

    Returns:
        Squared Euclidean distances, float32 [n, k], and rows of the bank, int64 [n, k].
    """
    rows = min(len(bank_mD), ROWS_OF_A_BLOCK, max(1, block_bytes // queries_nD.element_size()))
    queries = max(1, block_bytes // (rows * queries_nD.element_size()))
    squares_m = bank_mD.square().sum(1)
    if among_m is not None:
        squares_m = squares_m.masked_fill(~among_m, torch.inf)
    found = [neighbours_of_block(block, bank_mD, squares_m, neighbours, rows) for block in queries_nD.split(queries)]
    distances, indices = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(indices)


def neighbours_of_block(
    queries_nD: Tensor, bank_mD: Tensor, squares_m: Tensor, neighbours: int, rows: int = ROWS_OF_A_BLOCK
) -> tuple[Tensor, Tensor]:
    """As ``nearest_neighbours``, for all queries at once, ``rows`` of the bank at a time; can be traced for any n.

    ``squares_m``: squared norms of the bank's rows.
    """
    values, indices = [], []
    for start in range(0, len(bank_mD), rows):
        part = slice(start, start + rows)
        products_nr = torch.addmm(squares_m[part], queries_nD, bank_mD[part].T, alpha=-2)
        values_nk, indices_nk = _smallest(products_nr, min(neighbours, products_nr.shape[1]))
        values.append(values_nk)
        indices.append(indices_nk + start)
    _, places_nk = _smallest(torch.cat(values, dim=1), neighbours)
    indices_nk = torch.cat(indices, dim=1).gather(1, places_nk)
    distances = [(queries_nD - bank_mD[indices_n]).square().sum(1) for indices_n in indices_nk.unbind(1)]
    distances_nk, order_nk = torch.stack(distances, dim=1).sort(dim=1)
    return distances_nk, indices_nk.gather(1, order_nk)


def nearest_of_others(
    rows_mD: Tensor, owner_of_m: Tensor, neighbours: int = 1, block_bytes: int = BLOCK_BYTES
) -> Tensor:
    """The squared Euclidean distances of each row to the nearest rows of other owners: float32 [m, k].

    Args:
        rows_mD: float32.
        owner_of_m: whose each row is; two owners or more.
        neighbours: k; fewer where others do not have so many.
        block_bytes: what the distances at hand take at most.
    """
    of_largest = int(owner_of_m.unique(return_counts=True)[1].max())
    neighbours = max(1, min(neighbours, len(rows_mD) - of_largest))
    squares_m = rows_mD.square().sum(1)
    queries = max(1, block_bytes // (len(rows_mD) * rows_mD.element_size()))
    found = []
    for block_nD, owner_of_n in zip(rows_mD.split(queries), owner_of_m.split(queries), strict=True):
        products_nm = torch.addmm(squares_m, block_nD, rows_mD.T, alpha=-2)
        products_nm.masked_fill_(owner_of_n[:, None] == owner_of_m, torch.inf)
        _, places_nk = _smallest(products_nm, neighbours)
        distances = [(block_nD - rows_mD[places_n]).square().sum(1) for places_n in places_nk.unbind(1)]
        found.append(torch.stack(distances, dim=1))
    return torch.cat(found)


def _smallest(values_nm: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Values and places, [n, count]."""
    if count > 1:
        return values_nm.topk(count, dim=1, largest=False)
    values_n, places_n = values_nm.min(dim=1)  # several times as fast
    return values_n[:, None], places_n[:, None]
