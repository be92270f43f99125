"""Which signals end what, and how often ranks ask each other; no training here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from launches import hear_interrupts

from unimmad.training.stop_request import KILLED_AFTER_S, SLURM_SIGNALS, StopPoll, StopRequest

SECONDS = 20


@pytest.fixture
def slurm_stop():
    before = {number: signal.getsignal(number) for number in SLURM_SIGNALS}
    yield StopRequest(SLURM_SIGNALS).listen()
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


def until(holds) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_signals_are_remembered_and_only_one_asks_to_requeue(slurm_stop):
    assert slurm_stop.first == 0
    os.kill(os.getpid(), signal.SIGTERM)
    until(lambda: slurm_stop.first == signal.SIGTERM)
    assert not slurm_stop.to_requeue()
    os.kill(os.getpid(), signal.SIGUSR2)
    until(slurm_stop.to_requeue)
    assert slurm_stop.first == signal.SIGTERM
    slurm_stop.no_longer()
    # Unlike handlers, what is ignored stays so while Python ends.
    assert {signal.getsignal(number) for number in SLURM_SIGNALS} == {signal.SIG_IGN}


def waiting(*lines: str) -> subprocess.Popen[str]:
    """A process that heeds signals as training does, with its main thread where handlers do not run."""
    program = [
        "import ctypes, sys",
        "sys.argv = ['unimmad train']",
        "from unimmad.training.stop_request import TerminalStop",
        "stop = TerminalStop()",
        *lines,
        "stop.listen()",
        "print('listening', flush=True)",
        # Waits for a thread that never ends, with signals' interruptions hidden from Python.
        "import threading; lock = ctypes.CDLL(None); [lock.poll(None, 0, 60000) for _ in range(99)]",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", "\n".join(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )
    assert process.stdout.readline() == "listening\n"
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_before_training_a_signal_is_one_line_and_ends_the_process(number, status):
    process = waiting()
    process.send_signal(number)
    said = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == status
    assert said.split() == f"unimmad train: {number.name} before the first step: there is nothing to save".split()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_in_training_the_second_ends_it(number, status):
    """What comes at the same moment by another way is not a second."""
    process = waiting("stop.training = True")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(number)
    said = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == status
    assert said.count("saves and stops after this step") == 1
    assert f"{number.name}: stopped at once" in said


def test_deepspeeds_launcher_adds_a_signal_of_its_own_some_time_after_the_terminals(monkeypatch):
    monkeypatch.setenv("LOCAL_SIZE", "2")
    process = waiting("stop.training = True")
    for number in (signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
        time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 130


def test_a_launcher_that_ends_the_others_of_a_failed_rank_is_obeyed_at_once():
    process = waiting("stop.training = True", "stop.has_failed_rank = lambda: True")
    process.terminate()
    said = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 1
    assert said == "", "the failed rank says why"


def test_where_a_shell_ignores_interrupts_they_stay_ignored():
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    listed = "from unimmad.training.stop_request import TerminalStop; print(TerminalStop().numbers)"
    done = subprocess.run([sys.executable, "-c", ignoring + listed], capture_output=True, text=True, check=True)
    assert "SIGINT" not in done.stdout
    assert "SIGTERM" in done.stdout


class FakeWorld:
    """Two ranks of which this is the first; the other has no wish. Counts the questions."""

    size, is_main = 2, True
    questions = 0
    other_got = 0

    def largest(self, values: list[int]) -> list[int]:
        self.questions += 1
        return [max(values[0], self.other_got), values[1]]


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def questions_in(steps: int, seconds_a_step: float, delay_s: float) -> int:
    clock, world = Clock(), FakeWorld()
    poll = StopPoll(StopRequest((), delay_s), world, clock)
    for _ in range(steps):
        clock.seconds += seconds_a_step
        assert not poll.after_step()
    return world.questions


def test_short_steps_ask_seldom_and_long_ones_always():
    assert questions_in(1000, 1 / 128, delay_s=120) == 3, "after step 1, then every 3 s: 384 steps"
    assert questions_in(1000, 1 / 128, delay_s=10) == 8, "every second"
    assert questions_in(100, 40.0, delay_s=120) == 100


@pytest.mark.parametrize("slower", [1, 5])
def test_a_signal_is_heeded_within_its_delay_even_if_steps_become_slower(slower):
    clock, world = Clock(), FakeWorld()
    stop = StopRequest((), delay_s=300)
    poll = StopPoll(stop, world, clock)
    for _ in range(50):
        clock.seconds += 0.02
        poll.after_step()
    world.other_got, since = signal.SIGTERM, clock.seconds
    while True:
        clock.seconds += 0.02 * slower
        if poll.after_step():
            break
    assert clock.seconds - since < KILLED_AFTER_S
    assert stop.first == signal.SIGTERM, "for the exit status of a rank that got none itself"


def test_one_process_alone_heeds_each_step_and_asks_nobody():
    world = FakeWorld()
    world.size = 1
    stop = StopRequest(())
    poll = StopPoll(stop, world)
    assert not poll.after_step()
    stop.hear_from_others(signal.SIGINT)
    assert poll.after_step()
    assert world.questions == 0
