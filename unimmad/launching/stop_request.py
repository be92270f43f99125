"""Signals that ask a job to stop: remembered, and acted on by all ranks together at a step's end.

SLURM sends USR2 (submitit's choice) a while before the time limit and, where the site has it so, at a preemption: save
and requeue. It sends TERM when it is about to kill: at a preemption, ``scontrol requeue``, ``scancel``, or the limit
itself: save, and leave it to SLURM whether the job comes back.
"""

from __future__ import annotations

import multiprocessing.forkserver
import multiprocessing.resource_tracker
import signal
from multiprocessing import get_context
from types import FrameType

REQUEUE_SIGNAL = signal.SIGUSR2
END_SIGNAL = signal.SIGTERM
SIGNALS = {REQUEUE_SIGNAL, END_SIGNAL}


class StopRequest:
    """Which signals this process got."""

    def __init__(self) -> None:
        self._got: set[int] = set()

    def listen(self) -> StopRequest:
        """Take the place of submitit's handlers, which would requeue at once, on rank 0 alone."""
        for number in SIGNALS:
            signal.signal(number, self._remember)
        return self

    def no_longer(self) -> None:
        """Ignore the signals: Python gives up its handlers as it ends, and a task that is done could still die."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def asked(self) -> bool:
        """Whether training should stop."""
        return bool(self._got)

    def to_requeue(self) -> bool:
        """Whether the job itself should go back into the queue."""
        return REQUEUE_SIGNAL in self._got

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._got.add(number)


def shield_loader_processes() -> None:
    """Start the server that data loaders fork from with the signals blocked.

    Some sites signal every process of a task, not the task alone: loaders without a handler would die of it.
    """
    # The tracker unblocks TERM as it starts, so it goes first.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        get_context("forkserver").set_forkserver_preload(["unimmad.data.stream"])
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
