"""Evidence against "nothing has changed" that may be looked at after every image, for ever.

A conformal test martingale (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, part III). Each new
value is ranked among those of calibration and all new ones before it. As long as all are exchangeable the rank is
uniform, whatever the values' distribution, and does not depend on the ranks before it. A bettor who stakes on ranks
at the ends then plays a fair game: her capital, 1 at first, ever reaches 1 / a with probability a at most (Ville's
inequality), however long she plays.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

GRID_BITS = 10
"""Of a value that is kept: 0.1 % of it or less is lost. The grid does not depend on the values, so that ranks of the
rounded ones are as fair, and there are 512 places at most between a number and its double."""
POWERS = (0.2, 0.4, 0.7)
"""Of the bets: the smaller, the more is staked on ranks at the very end."""
LARGEST = 1e200
"""Capital beyond this is thrown away, which keeps the game fair."""
_SMALLEST_RANK = 1e-12

Place = TypeVar("Place")


def on_grid(value: float) -> float:
    """The nearest number of ``GRID_BITS`` binary digits."""
    mantissa, exponent = math.frexp(value)
    return math.ldexp(round(mantissa * 2**GRID_BITS), exponent - GRID_BITS)


class Bag:
    """How often each value was there; takes memory by the number of different ones, which the grid bounds."""

    def __init__(self, counts: Mapping[float, int]) -> None:
        """``counts``: by value on the grid."""
        self._counts = dict(counts)
        self._values = sorted(counts)
        self.total = sum(counts.values())

    def add(self, value: float, between: float) -> float:
        """Put ``value`` in; gives the share of all that are larger, itself and its equals counted by ``between``.

        ``between`` is drawn evenly from 0 to 1; then so is the share, where all values are exchangeable.
        """
        value = on_grid(value)
        if value not in self._counts:
            self._counts[value] = 0
            insort(self._values, value)
        self._counts[value] += 1
        self.total += 1
        larger = sum(self._counts[one] for one in self._values[bisect_left(self._values, value) + 1 :])
        return (larger + between * self._counts[value]) / self.total

    def quantile(self, share: float) -> float:
        """The smallest value that ``share`` of all are not above."""
        reached = 0
        for value in self._values:
            reached += self._counts[value]
            if reached >= share * self.total:
                return value
        return self._values[-1]


class Evidence(Generic[Place]):
    """The capital of bettors who begin to bet at each image, and stay; in constant memory.

    A share of the first capital waits for each image to begin with. So little is lost by a long time without a change,
    and the whole stays a fair game: its bound holds over unlimited time.
    """

    def __init__(self, bets: int) -> None:
        """``bets``: the number of bettors, who share the capital."""
        self.seen = 0
        self.capital = 1.0
        self._betting = [0.0] * bets
        self._runs = [1.0] * bets
        self._starts: list[Place | None] = [None] * bets

    def add(self, factors: Sequence[float], place: Place) -> None:
        """What a stake of each bettor has become with the next image, which is at ``place``."""
        fresh = _waiting(self.seen) - _waiting(self.seen + 1)
        self.seen += 1
        for bet, factor in enumerate(factors):
            self._betting[bet] = min((self._betting[bet] + fresh) * factor, LARGEST)
            if self._runs[bet] <= 1.0:
                self._runs[bet], self._starts[bet] = 1.0, place
            self._runs[bet] = min(self._runs[bet] * factor, LARGEST)
        self.capital = sum(self._betting) / len(factors) + _waiting(self.seen)

    @property
    def best_bet(self) -> int:
        """The number of the bettor who has most."""
        return self._betting.index(max(self._betting))

    @property
    def since(self) -> Place | None:
        """From where on a bettor would have won most: the likely place of the change."""
        best = self._runs.index(max(self._runs))
        return self._starts[best]


def rank_factors(larger: float) -> list[float]:
    """What bets on a rank come to, 1 on average over ranks from 0 to 1: first those on large values, then on small."""
    ends = (max(larger, _SMALLEST_RANK), max(1.0 - larger, _SMALLEST_RANK))
    return [power * end ** (power - 1.0) for end in ends for power in POWERS]


def share_factors(happened: bool, at_most: float) -> list[float]:
    """What bets on an event come to, of mean 1 or less where its probability is ``at_most``."""
    guesses = [at_most + (1.0 - at_most) * share for share in (0.1, 0.3, 0.7)]
    if happened:
        return [guess / at_most for guess in guesses]
    return [(1.0 - guess) / (1.0 - at_most) for guess in guesses]


def _waiting(seen: int) -> float:
    """The share of the first capital that does not bet yet after so many images; 1 at first, 0 in the end."""
    return 1.0 / math.log2(2.0 + seen)
