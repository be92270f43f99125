"""The game is fair, its bound holds, and a change is won from."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest

from unimmad.monitoring.evidence import POWERS, Bag, Evidence, on_grid, rank_factors, share_factors
from unimmad.monitoring.streams import MOST_POINTS, Place, Stream, StreamName


def test_bets_are_fair():
    """On average over even ranks each comes to 1, by the integral in steps of a logarithm near the ends."""
    ranks = np.concatenate([edge := np.geomspace(1e-12, 0.5, 10_001), 1 - edge[::-1]])
    middles, widths = (ranks[1:] + ranks[:-1]) / 2, np.diff(ranks)
    means = np.array([rank_factors(float(rank)) for rank in middles]).T @ widths
    assert means == pytest.approx([1.0] * 2 * len(POWERS), abs=5e-3)
    won, lost = np.array(share_factors(True, 0.1)), np.array(share_factors(False, 0.1))
    assert 0.1 * won + 0.9 * lost == pytest.approx([1.0] * 3)
    assert (0.05 * won + 0.95 * lost < 1).all()


def test_a_rank_is_even_whatever_the_order_and_the_ties():
    """Over all orders of values with ties, the last one's share has the mean of an even draw within each n-th."""
    found = []
    for order in itertools.permutations([1.0, 2.0, 2.0, 5.0]):
        for between in (0.125, 0.375, 0.625, 0.875):
            bag = Bag(Counter(order[:2]))
            bag.add(order[2], 0.5)
            found.append(bag.add(order[3], between))
    counts, _ = np.histogram(found, 4, (0, 1))
    assert set(counts) == {len(found) // 4}


def test_the_grid_loses_a_thousandth_and_bounds_the_memory():
    draw = random.Random(0)
    bag = Bag({})
    for _ in range(5_000):
        value = draw.uniform(1.0, 2.0)
        assert on_grid(on_grid(value)) == on_grid(value) == pytest.approx(value, rel=2**-10)
        bag.add(-value, draw.random())
    assert len(bag._values) <= 513
    assert (bag.total, bag.quantile(0.5)) == (5_000, pytest.approx(-1.5, abs=0.05))
    assert on_grid(0.0) == 0.0


def test_the_capital_is_that_of_all_who_begin_at_each_image():
    draw, evidence = random.Random(0), Evidence[int](6)
    factors = [rank_factors(draw.random() ** 2) for _ in range(12)]
    for place, factor in enumerate(factors):
        evidence.add(factor, place)
    waiting = [1 / math.log2(2 + seen) for seen in range(13)]
    products = np.array([np.prod(factors[start:], axis=0) for start in range(12)])
    shares = np.array(waiting[:-1]) - np.array(waiting[1:])
    assert evidence.capital == pytest.approx(waiting[-1] + (shares @ products).mean())
    start, bet = np.unravel_index(products.argmax(), products.shape)
    assert evidence.since == start
    assert evidence.best_bet == (shares @ products).argmax()
    assert bet < 3  # on large values


def test_its_bound_holds():
    """Ever 10 or more: in a tenth of the streams at most. The values are anything but normal, and have ties."""
    wrong = 0
    for seed in range(200):
        draw = random.Random(seed)
        usual = Counter(on_grid(round(draw.expovariate(1), 1)) for _ in range(30))
        stream = Stream(StreamName("a/b", ("rgb",), str(seed)), 10.0, usual)
        for number in range(100):
            stream.add(round(draw.expovariate(1), 1), Place(number, "", ""))
        wrong += stream.alarm is not None
    assert wrong <= 20


def test_a_change_is_noticed_where_it_began():
    """After a thousand images without one."""
    for seed in range(5):
        draw = random.Random(seed)
        stream = Stream(StreamName("a/b", ("rgb",), "x"), 1e4, Counter(on_grid(draw.gauss(0, 1)) for _ in range(60)))
        for number in range(1015):
            stream.add(draw.gauss(-4 if number >= 1000 else 0, 1), Place(number, str(number), ""))
        assert stream.alarm is not None
        assert stream.alarm.direction == "lower"
        assert 990 <= stream.alarm.since.number <= 1002 <= stream.alarm.noticed.number
        assert len(list(stream.curve)) <= MOST_POINTS + 1
        assert stream.latest < 0
