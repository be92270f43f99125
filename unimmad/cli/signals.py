"""Signals that end a command, also where Python would ignore what their handler raises."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType

RETRY_SECONDS = 0.1

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def ending_by(handlers: Mapping[int, Handler]) -> Iterator[None]:
    """Handle signals by functions that raise SystemExit or KeyboardInterrupt; what was there before is put back.

    A signal may come while Python calls something on its own, such as logging at a fork or a destructor. What is raised
    there is "ignored", and the command would go on: so the signal is sent once more a moment later.
    """
    came: list[int] = []
    again: list[threading.Timer] = []

    def noted(handler: Handler) -> Handler:
        def handle(number: int, frame: FrameType | None) -> None:
            forget()
            came.append(number)
            handler(number, frame)

        return handle

    def forget() -> None:
        came.clear()
        while again:
            again.pop().cancel()

    def on_ignored(ignored: sys.UnraisableHookArgs) -> None:
        if came and os.getpid() == process and isinstance(ignored.exc_value, SystemExit | KeyboardInterrupt):
            timer = threading.Timer(RETRY_SECONDS, os.kill, (process, came.pop()))
            timer.daemon = True
            again.append(timer)
            timer.start()
        else:
            hook_before(ignored)

    process = os.getpid()
    before = {number: signal.signal(number, noted(handler)) for number, handler in handlers.items()}
    hook_before, sys.unraisablehook = sys.unraisablehook, on_ignored
    try:
        yield
    finally:
        forget()
        sys.unraisablehook = hook_before
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupts() -> dict[int, Handler]:
    """Ctrl-C as Python handles it; nothing where it is ignored, as in the background, or handled otherwise."""
    in_main = threading.current_thread() is threading.main_thread()
    ours = in_main and signal.getsignal(signal.SIGINT) == signal.default_int_handler
    return {signal.SIGINT: signal.default_int_handler} if ours else {}
