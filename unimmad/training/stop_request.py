"""Signals that ask training to stop: heard whatever the main thread does, and told to all ranks.

SLURM sends USR2 (submitit's choice) a while before the time limit and, where the site has it so, at a preemption: save
and requeue. It sends TERM when it is about to kill: at a preemption, ``scontrol requeue``, ``scancel``, or the limit
itself: save, and leave it to SLURM whether the job comes back. A terminal sends INT at Ctrl-C to all processes of a
command; torchrun passes INT and TERM on to its ranks (the second as TERM), DeepSpeed's launcher sends them TERM at
either, to one after the other.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from unimmad.parallel.world import World

from unimmad.ranks.launcher import program

REQUEUE_SIGNAL = signal.SIGUSR2
SLURM_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
KILLED_AFTER_S = 30.0
"""What torchrun, DeepSpeed's launcher and SLURM (KillWait) leave by default between asking to end and killing."""
ECHO_S = 0.5
"""A signal that follows so soon is the same one, by another way: from SLURM, and from a launcher that it asked."""
TORCHRUN_ECHO_S = 2.0
"""The same under torchrun, which passes signals on when its own thread gets to it."""
TORCHRUN_MARK = "TORCHELASTIC_RUN_ID"
"""A variable that torchrun alone sets."""
DEEPSPEED_MARK = "LOCAL_SIZE"
"""A variable that DeepSpeed's launcher alone sets."""
FRACTION_OF_DELAY = 0.1
"""Of the time between a signal and the end; the rest is for the step, the save, and steps that become slower."""


class StopRequest:
    """Which signals this process got.

    Args:
        numbers: the signals to listen to.
        delay_s: seconds from the signal to the end that comes by itself.
    """

    def __init__(self, numbers: Iterable[int], delay_s: float = KILLED_AFTER_S) -> None:
        self.numbers = tuple(numbers)
        self.delay_s = min(delay_s, KILLED_AFTER_S)
        self.training = False
        """Set by the trainer as its steps begin: from then on it saves and stops at the end of a step."""
        self.has_failed_rank: Callable[[], bool] = lambda: False
        """Launchers send TERM to the ranks that are left when one has failed; then there is nothing to save."""
        self._got: dict[int, float] = {}

    def listen(self) -> Self:
        """Take the place of the handlers that are there; called by the main thread."""
        # Handlers run in the main thread, which may wait for other ranks; their numbers reach a pipe at once.
        heard, written = os.pipe()
        os.set_blocking(written, False)
        for number in self.numbers:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        threading.Thread(target=self._hear, args=(heard,), name="signals", daemon=True).start()
        return self

    def no_longer(self) -> None:
        """Ignore the signals: Python gives up its handlers as it ends, and a process that is done could still die."""
        for number in self.numbers:
            signal.signal(number, signal.SIG_IGN)

    @property
    def first(self) -> int:
        """The signal that came first; 0 where none came."""
        return next(iter(self._got), 0)

    def hear_from_others(self, number: int) -> None:
        """Some rank got ``number``, and all stop."""
        self._got.setdefault(number, time.monotonic())

    def to_requeue(self) -> bool:
        """Whether the job itself should go back into the queue."""
        return REQUEUE_SIGNAL in self._got

    def _hear(self, pipe: int) -> None:
        while True:
            for number in os.read(pipe, 64):
                if number in self.numbers:
                    self._heard(number, time.monotonic())

    def _heard(self, number: int, now: float) -> None:
        if not self._got and self.has_failed_rank():
            os._exit(1)
        self._got.setdefault(number, now)


class TerminalStop(StopRequest):
    """What a run does that somebody watches.

    The first signal lets the step end and saves; the second ends the process at once, and so does one before training.
    """

    def __init__(self) -> None:
        # A shell without job control has its background commands ignore INT.
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        super().__init__((signal.SIGTERM,) if ignored else (signal.SIGINT, signal.SIGTERM))

    @property
    def exit_status(self) -> int:
        """As shells show it: 130 for INT, 143 for TERM."""
        return 128 + self.first

    def _heard(self, number: int, now: float) -> None:
        name = signal.Signals(number).name
        if self._got:
            by_deepspeed = number == signal.SIGTERM and DEEPSPEED_MARK in os.environ
            if not by_deepspeed and now - next(iter(self._got.values())) > _echo_s():
                _say(f"{name}: stopped at once; the same command continues from the last checkpoint")
                os._exit(128 + number)
            return
        super()._heard(number, now)
        if not self.training:
            _say(f"{name} before the first step: there is nothing to save")
            os._exit(128 + number)
        _say(f"{name}: training saves and stops after this step; a second signal ends it at once")


class StopPoll:
    """Asks all ranks whether one of them was told to stop: as seldom as the time that a signal leaves allows.

    Rank 0 chooses after how many steps all ask again, by how long the last ones took; all hear it as they ask.

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
        return max(1, int(FRACTION_OF_DELAY * self._stop.delay_s / seconds_a_step))


def _echo_s() -> float:
    return TORCHRUN_ECHO_S if TORCHRUN_MARK in os.environ else ECHO_S


def _say(text: str) -> None:
    """From rank 0 alone; on a line of its own beside a progress bar."""
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"\n{program()}: {text}\n")
        sys.stderr.flush()
