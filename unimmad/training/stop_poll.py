"""Asks all ranks whether one of them was told to stop: as seldom as the time that a signal leaves allows."""

from __future__ import annotations

import time
from collections.abc import Callable

from unimmad.parallel.world import World
from unimmad.training.stop_request import StopRequest

SHARE_OF_DELAY = 0.1
"""Of the time between a signal and the end; the rest is for the step, the save, and steps that become slower."""


class StopPoll:
    """Rank 0 chooses after how many steps all ask again, by how long the last ones took; all hear it as they ask.

    Args:
        stop: None: nobody asks.
        now: seconds of a clock.
    """

    def __init__(self, stop: StopRequest | None, world: World, now: Callable[[], float] = time.monotonic) -> None:
        self._stop = stop
        self._world = world
        self._now = now
        self._asked_at = now()
        self._steps = 0
        self._next = 1

    def after_step(self) -> bool:
        """Whether all stop now. Every rank calls it after each step and gets the same answer."""
        if self._stop is not None and self._world.size == 1:
            return self.ask()
        self._steps += 1
        return self._steps >= self._next and self.ask()

    def ask(self) -> bool:
        """As ``after_step``, now and for certain."""
        if self._stop is None:
            return False
        if self._world.size == 1:
            return self._stop.first != 0
        number, self._next = self._world.largest([self._stop.first, self._choose() if self._world.is_main else 0])
        self._steps, self._asked_at = 0, self._now()
        if number:
            self._stop.hear_from_others(number)
        return number != 0

    def _choose(self) -> int:
        """Steps until the next question."""
        assert self._stop is not None
        seconds_a_step = max((self._now() - self._asked_at) / max(self._steps, 1), 1e-6)
        return max(1, int(SHARE_OF_DELAY * self._stop.delay_s / seconds_a_step))
