"""In which orders the positions of a square grid are visited (MambaAD's scans)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

ScanType = Literal["hilbert", "zorder", "zigzag", "scan", "sweep"]
DIRECTIONS = 8


def scan_order(scan_type: ScanType, side: int) -> Tensor:
    """Flat positions (row * side + column) in the order of their visit: int64 [side * side].

    Args:
        scan_type: ``hilbert`` and ``zorder``, the curves of these names; ``zigzag``, diagonal by diagonal; ``scan``,
            row by row, every second one backwards; ``sweep``, row by row.
        side: of the grid.

    Raises:
        ValueError: a grid that the curve does not fill.
    """
    check_side(scan_type, side)
    if scan_type == "hilbert":
        return _hilbert_ranks(side).flatten().argsort()
    if scan_type == "zorder":
        return _zorder_ranks(side).flatten().argsort()
    if scan_type == "zigzag":
        row, column = np.divmod(np.arange(side * side), side)
        # Diagonal by diagonal, upwards and downwards by turns.
        return torch.from_numpy(np.lexsort((np.where((row + column) % 2, row, column), row + column)))
    positions = torch.arange(side * side).view(side, side)
    if scan_type == "scan":
        positions[1::2] = positions[1::2].flip(1)
    return positions.flatten()


def check_side(scan_type: ScanType, side: int) -> None:
    """
    Raises:
        ValueError: a grid that the curve does not fill.
    """
    if scan_type in ("hilbert", "zorder") and (side < 1 or side & (side - 1)):
        raise ValueError(f"a {scan_type} scan needs a grid whose side is a power of two, not {side}")


def direction_orders(scan_type: ScanType, side: int) -> Tensor:
    """One order a direction: the grid's, its transpose's, those of both after a quarter turn, and their reversals.

    Returns:
        int64 [8, side * side].
    """
    order = scan_order(scan_type, side)
    grid = torch.arange(side * side).view(side, side)
    turned = grid.rot90()
    orders = torch.stack([view.flatten()[order] for view in (grid, grid.T, turned, turned.T)])
    return torch.cat([orders, orders.flip(1)])


def _hilbert_ranks(side: int) -> Tensor:
    """When each position is visited, from the top left corner to the top right one: [side, side]."""
    if side == 1:
        return torch.zeros(1, 1, dtype=torch.int64)
    quarter = _hilbert_ranks(side // 2)
    size, down = quarter.numel(), quarter.T
    up = down.flip(0, 1)
    top = torch.cat([down, up + 3 * size], dim=1)
    bottom = torch.cat([quarter + size, quarter + 2 * size], dim=1)
    return torch.cat([top, bottom])


def _zorder_ranks(side: int) -> Tensor:
    """When each position is visited: [side, side]."""
    if side == 1:
        return torch.zeros(1, 1, dtype=torch.int64)
    quarter = _zorder_ranks(side // 2)
    top = torch.cat([quarter, quarter + quarter.numel()], dim=1)
    return torch.cat([top, top + top.numel()])
