"""One statistic of one class's images as they come: how unusual it is, since when, and what to draw of it."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, NamedTuple

from unimmad.monitoring.evidence import POWERS, Bag, Evidence, rank_factors, share_factors

SCORE, SHARE = "score", "share called anomalous"
"""The statistics that are not of images."""
RECENT = 32
"""Values that the latest median is of."""
MOST_POINTS = 400
"""Of a curve; beyond it every other one goes."""
USUAL = (0.05, 0.95)
"""Quantiles of the values before any drift that are called usual."""
Direction = Literal["higher", "lower"]


class Place(NamedTuple):
    """Which prediction it was."""

    number: int
    """Among all of the class, from 1."""
    name: str
    time: str
    """When it was made, ISO 8601; empty where nobody said."""


class Point(NamedTuple):
    """One place of a curve."""

    number: int
    value: float
    capital: float


class Curve:
    """Evenly thinned as it grows, so that it takes constant memory."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self._step = 1
        self._last: Point | None = None
        self._seen = 0

    def add(self, point: Point) -> None:
        self._last = point
        if self._seen % self._step == 0:
            self.points.append(point)
        self._seen += 1
        if len(self.points) > MOST_POINTS:
            self.points = self.points[::2]
            self._step *= 2

    def __iter__(self) -> Iterator[Point]:
        """The points, the last one always among them."""
        yield from self.points
        if self._last is not None and self.points[-1] != self._last:
            yield self._last


@dataclass(frozen=True)
class StreamName:
    """What is watched."""

    class_name: str
    modalities: tuple[str, ...]
    """The one that an image is of; of scores all of the sample's."""
    statistic: str

    def __str__(self) -> str:
        return f"{self.class_name} {'+'.join(self.modalities)} {self.statistic}"


@dataclass(frozen=True)
class Alarm:
    """A statistic that has changed."""

    stream: StreamName
    direction: Direction
    since: Place
    """Where the change is likely to have begun."""
    noticed: Place
    """Where it was told of."""
    usual: tuple[float, float]
    """Between which most calibration images lie; of a share, 0 and what it may be."""


class Stream:
    """Values of one statistic, compared with those of calibration by their ranks, or a share with what it may be.

    Takes constant memory. Once it has told of a change it stays so: start again when the cause is mended.
    """

    def __init__(self, name: StreamName, limit: float, usual: Mapping[float, int] | float) -> None:
        """
        Args:
            name: what it is.
            limit: the capital at which it tells of a change.
            usual: calibration's values, as ``Bag`` takes them; or what a share may be.
        """
        self.name = name
        self.limit = limit
        self.alarm: Alarm | None = None
        self.curve = Curve()
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.images = 0 if isinstance(usual, float) else sum(usual.values())
        self._at_most = usual if isinstance(usual, float) else None
        self._bag = Bag({} if isinstance(usual, float) else usual)
        self._between = random.Random(str(name))  # the same for the same values, in every process
        self.usual = self._usual()
        self.evidence: Evidence[Place] = Evidence(len(self._factors_of_none()))

    def add(self, value: float, place: Place) -> Alarm | None:
        """Take in the next one; gives the alarm where this is what tells of a change."""
        if self._at_most is not None:
            factors = share_factors(value > 0, self._at_most)
        else:
            factors = rank_factors(self._bag.add(value, self._between.random()))
        self.evidence.add(factors, place)
        self.recent.append(value)
        self.curve.add(Point(place.number, value, self.evidence.capital))
        if self.alarm is not None or self.evidence.capital < self.limit:
            return None
        since = self.evidence.since or place
        self.alarm = Alarm(self.name, self._direction(), since, place, self.usual)
        return self.alarm

    @property
    def latest(self) -> float | None:
        """The median of the last values, of a share their mean; None before the first."""
        if not self.recent:
            return None
        return sum(self.recent) / len(self.recent) if self._at_most is not None else median(self.recent)

    def _direction(self) -> Direction:
        return "higher" if self._at_most is not None or self.evidence.best_bet < len(POWERS) else "lower"

    def _usual(self) -> tuple[float, float]:
        if self._at_most is not None:
            return 0.0, self._at_most
        if not self._bag.total:
            return 0.0, 0.0
        return self._bag.quantile(USUAL[0]), self._bag.quantile(USUAL[1])

    def _factors_of_none(self) -> Sequence[float]:
        return rank_factors(0.5) if self._at_most is None else share_factors(False, self._at_most)
