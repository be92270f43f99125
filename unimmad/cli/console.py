"""How commands end, and what they print: whatever files are called, whether or not somebody still reads it."""

from __future__ import annotations

import io
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from unimmad.cli.signals import ending_by, interrupts
from unimmad.serialization.text import error_lines

INTERRUPTED = 128 + signal.SIGINT
UNREAD = 128 + signal.SIGPIPE
"""The exit status where nobody reads on, as a shell has it of other programs."""


def print_any_name() -> None:
    """Let standard output escape what its encoding lacks, as standard error does, where ``print`` would raise."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def run_command(
    program: str,
    command: Callable[[], int | None],
    *,
    if_interrupted: str = "",
    sigterm: bool = True,
    told: Callable[[Exception], str] = error_lines,
) -> int:
    """The exit status: what ``command`` returns, else 0; 2 where something given is wrong, 130 where it is interrupted.

    Either is told in a line on standard error.

    Args:
        program: begins the line.
        command: what is done. The words of a KeyboardInterrupt that it raises follow the line's own.
        if_interrupted: follows the line's words where it raises one without words.
        sigterm: SIGTERM interrupts it, too; False where a server handles that by itself.
        told: what to say of an error.
    """
    print_any_name()
    try:
        with sigterm_as_interrupt() if sigterm else nullcontext():
            return command() or 0
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:  # no file that the user could mend
            raise
        print(f"{program}: {told(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"{program}: interrupted{interrupt}{'' if interrupt.args else if_interrupted}", file=sys.stderr)
        return INTERRUPTED


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """What a batch system sends before it kills is told of like Ctrl-C, unless somebody else handles it."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    with ending_by({signal.SIGTERM: signal.default_int_handler, **interrupts()}):
        yield


def quiet_if_unread(command: Callable[[], int]) -> int:
    """What ``command`` returns, or UNREAD, without a word, where the reader of its output has left, as ``head`` does.

    Raises:
        BrokenPipeError: of another pipe.
    """
    try:
        try:
            return command()
        finally:
            if sys.stdout is not None:  # as it is where the shell closed it
                sys.stdout.flush()
    except BrokenPipeError:
        unread = [number for number in (1, 2) if _is_unread(number)]
        if not unread:
            raise
        _discard(unread)
        return UNREAD


def _is_unread(number: int) -> bool:
    """Whether the file descriptor is a pipe that nobody will read."""
    poll = select.poll()
    poll.register(number, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _discard(numbers: list[int]) -> None:
    """What is still in buffers goes nowhere when Python flushes them at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in numbers:
        os.dup2(nowhere, number)
    os.close(nowhere)
