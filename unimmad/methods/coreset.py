"""Which patches a memory bank keeps: PatchCore's greedy coreset, or a random choice (Roth et al., CVPR 2022).

The greedy choice takes again and again the row that is farthest from all rows taken before. It measures distances in
fewer dimensions than the rows have, by a random projection that serves for nothing else.

Letters: N rows to choose from, D features of a row, d dimensions that distances are measured in, S start points.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

BLOCK_BYTES = 64 * 2**20
"""What a part of a matrix of distances may take."""


def hash_of_key(key: str) -> int:
    """A number from 0 to 2^63 - 1 that stands for a sample's ``key``; the same everywhere."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) >> 1


def view_key(key: str, view: int) -> str:
    """What tells a view of the photograph ``key`` from all others, and from those of other photographs; the first one
    is told as the photograph is, which may have no other."""
    return f"{key} view {view}" if view else key


def random_order(key_hash: int, count: int, seed: int) -> Tensor:
    """One random number for each of a sample's ``count`` patches: int64 [count], from 0 to 2^63 - 1.

    They depend on the arguments alone, so keeping the rows with the smallest is one and the same random choice
    whatever the order in which samples come and however many processes share them.
    """
    numbers = np.random.Philox(key=np.array([seed, key_hash], dtype=np.uint64)).random_raw(count)
    return torch.from_numpy((numbers >> np.uint64(1)).astype(np.int64))


def rows_to_keep(total: int, share: float, most: int | None) -> int:
    """``share`` of ``total`` rows, rounded down, ``most`` at most and one at least."""
    kept = int(total * share)
    return max(1, kept if most is None else min(kept, most))


def projected(rows_ND: Tensor, dimensions: int, generator: torch.Generator) -> Tensor:
    """The rows in fewer dimensions, by a matrix as a new ``torch.nn.Linear`` has it: [N, dimensions].

    Rows that have as many dimensions already come back as they are.
    """
    features = rows_ND.shape[1]
    if features == dimensions:
        return rows_ND
    bound = features**-0.5
    matrix_dD = torch.empty(dimensions, features).uniform_(-bound, bound, generator=generator)
    return rows_ND @ matrix_dD.T.to(rows_ND.device)


def random_start_points(total: int, count: int, generator: torch.Generator) -> Tensor:
    """Different rows for the approximate choice to start with: int64 [min(count, total)]."""
    return torch.randperm(total, generator=generator)[:count]


def greedy_coreset(
    rows_Nd: Tensor, count: int, start_points_S: Tensor | None = None, block_bytes: int = BLOCK_BYTES
) -> Tensor:
    """Rows in the order in which they are taken: int64 [count], all different.

    A row's distance to what is taken begins with a value that stands for its distance to all rows. The exact choice
    takes the Euclidean norm of all its distances, hence N^2 of them, the approximate one the mean of those to the start
    points. No more than ``block_bytes`` of them are in memory at once, whichever it is.

    Args:
        rows_Nd: what distances are measured between.
        count: how many to take, N at most.
        start_points_S: the approximate choice by these rows; None: the exact one.
        block_bytes: the limit.

    Raises:
        ValueError: ``count`` is not from 1 to N.
    """
    if not 1 <= count <= len(rows_Nd):
        raise ValueError(f"a coreset of {count} of {len(rows_Nd)} patches can't be chosen; take 1 or more, and no more")
    squares_N = rows_Nd.square().sum(1)
    # Squared, since the smaller of two distances has the smaller square: no root is needed for any later one.
    nearest_N = _start_values(rows_Nd, squares_N, start_points_S, block_bytes).square()
    taken = torch.empty(count, dtype=torch.long, device=rows_Nd.device)
    for place in range(count):
        row_1 = nearest_N.argmax()[None]  # stays on its device: a number of Python's would have to wait for it
        taken[place] = row_1[0]
        distances_N1 = _squared_distances(rows_Nd, squares_N, rows_Nd[row_1], squares_N[row_1])
        nearest_N = torch.minimum(nearest_N, distances_N1[:, 0])
        nearest_N[row_1] = -1  # no row twice, not even where all that are left have equals among the taken
    return taken


def _start_values(rows_Nd: Tensor, squares_N: Tensor, start_points_S: Tensor | None, block_bytes: int) -> Tensor:
    """[N]."""
    others = slice(None) if start_points_S is None else start_points_S.to(rows_Nd.device)
    others_Sd, squares_S = rows_Nd[others], squares_N[others]
    block = max(1, block_bytes // (others_Sd.shape[0] * rows_Nd.element_size()))
    parts = zip(rows_Nd.split(block), squares_N.split(block), strict=True)
    distances = (_squared_distances(*part, others_Sd, squares_S).sqrt() for part in parts)
    if start_points_S is None:
        return torch.cat([torch.linalg.vector_norm(distances_nN, dim=1) for distances_nN in distances])
    return torch.cat([distances_nS.mean(1) for distances_nS in distances])


def _squared_distances(a_nd: Tensor, squares_n: Tensor, b_md: Tensor, squares_m: Tensor) -> Tensor:
    """[n, m]; the squares are the squared norms of the rows."""
    distances_nm = torch.addmm(squares_m, a_nd, b_md.T, alpha=-2)
    return distances_nm.add_(squares_n[:, None]).clamp_min_(0)
