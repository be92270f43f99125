"""What a signal's handler raises ends a command, whatever Python is doing then."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

AT_A_FORK = """
import os, signal, subprocess, sys, time
from unimmad.cli.console import run_command
from unimmad.cli.signals import ending_by, interrupts

def command():
    os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.{name}))
    subprocess.run(["true"], preexec_fn=lambda: None)
    time.sleep(30)
    return 0

def stop(number, frame):
    sys.exit(128 + number)

{run}
"""
AS_OTHERS = "sys.exit(run_command('unimmad x', command, if_interrupted='; kept'))"
AS_COMPARE = """with ending_by({signal.SIGUSR2: stop, **interrupts()}):
    sys.exit(run_command('unimmad x', command, sigterm=False))"""


@pytest.mark.parametrize(
    ("name", "run", "status", "said"),
    [
        ("SIGTERM", AS_OTHERS, 130, "unimmad x: interrupted; kept\n"),
        ("SIGINT", AS_OTHERS, 130, "unimmad x: interrupted; kept\n"),
        ("SIGUSR2", AS_COMPARE, 128 + signal.SIGUSR2, ""),
        ("SIGINT", AS_COMPARE, 130, "unimmad x: interrupted\n"),
    ],
)
def test_a_signal_that_comes_at_a_fork_is_not_lost(name, run, status, said):
    ended = subprocess.run(
        [sys.executable, "-c", AT_A_FORK.format(name=name, run=run)],
        capture_output=True,
        text=True,
        timeout=25,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert (ended.returncode, ended.stderr) == (status, said)
