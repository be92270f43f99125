"""Orders of a grid's positions."""

import pytest
import torch

from unimmad.methods.scan_orders import direction_orders, scan_order

SCAN_TYPES = ["hilbert", "zorder", "zigzag", "scan", "sweep"]


@pytest.mark.parametrize("scan_type", SCAN_TYPES)
@pytest.mark.parametrize("side", [1, 2, 4, 32])
def test_every_direction_visits_every_position_once(scan_type, side):
    for order in direction_orders(scan_type, side):
        assert torch.equal(order.sort().values, torch.arange(side * side))


@pytest.mark.parametrize("side", [2, 4, 8, 64])
def test_the_hilbert_curve_goes_to_neighbours(side):
    rows, columns = scan_order("hilbert", side) // side, scan_order("hilbert", side) % side
    assert ((rows.diff().abs() + columns.diff().abs()) == 1).all()


def test_the_last_four_directions_are_the_first_four_backwards():
    orders = direction_orders("hilbert", 8)
    assert torch.equal(orders[4:], orders[:4].flip(1))


def test_the_hilbert_curve_is_its_own_mirror_image():
    """So two of the eight directions are met twice, each time with parameters of their own."""
    orders = direction_orders("hilbert", 8)
    assert len(set(map(tuple, orders.tolist()))) == 6


@pytest.mark.parametrize("scan_type", ["hilbert", "zorder"])
@pytest.mark.parametrize("side", [0, 3, 12])
def test_a_curve_refuses_a_grid_that_it_does_not_fill(scan_type, side):
    with pytest.raises(ValueError, match=f"power of two, not {side}"):
        scan_order(scan_type, side)


@pytest.mark.parametrize("scan_type", ["zigzag", "scan", "sweep"])
def test_the_others_fill_any_grid(scan_type):
    assert torch.equal(scan_order(scan_type, 3).sort().values, torch.arange(9))
