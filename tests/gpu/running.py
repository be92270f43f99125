"""Runs groups of checks in processes of their own, within a time: what hangs or dies fails alone, the others go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpu.check import Outcome, Setting, Status
from gpu.worker import began_file, outcome_file

ROOT = Path(__file__).resolve().parents[2]
LONGEST = {"cuda": 180.0, "cpu": 1200.0}
"""Seconds that one check may take; compiling may take what time there is left."""
Ended = tuple[Status, float, str]
"""What to say of a check that had to be ended: status, seconds, why."""
UNLIMITED = "speed compiled"
POLL_SECONDS = 0.1


def outcomes_of(
    names: Sequence[str], setting: Setting, logs: Path, deadline: float, worker: str = "gpu.worker"
) -> Iterator[Outcome]:
    """Of the checks of a group, in order; after one that failed the rest get a new process.

    Args:
        names: of the checks.
        setting: where, and on what.
        logs: folder for what the processes print and write.
        deadline: on ``time.monotonic()``'s clock; checks that have not ended then have no time left.
        worker: the module that makes them.
    """
    pending = list(names)
    while pending:
        if time.monotonic() >= deadline:
            yield from (Outcome(name, "no time left", why="not begun") for name in pending)
            return
        ended = _run(worker, pending, setting, logs, deadline)
        while pending and outcome_file(logs, pending[0]).exists():
            yield Outcome(**json.loads(outcome_file(logs, pending.pop(0)).read_text(encoding="utf-8")))
        if pending and not isinstance(ended, int):
            yield Outcome(pending.pop(0), *ended)
        elif pending and (began_file(logs, pending[0]).exists() or ended):
            yield Outcome(pending.pop(0), "failed", why=f"its process ended with {ended}; its log: {_log(logs)}")


def _run(worker: str, names: Sequence[str], setting: Setting, logs: Path, deadline: float) -> int | Ended:
    """The exit status of a process that was given ``names``; if it had to be ended, what to say of the check in it."""
    argv = [sys.executable, "-m", worker, setting.device, setting.recipe, str(setting.work), str(logs), *names]
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    hidden = {} if setting.on_gpu else {"CUDA_VISIBLE_DEVICES": ""}
    environment = {**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE", **hidden}
    with _log(logs).open("a") as log:
        process = subprocess.Popen(
            argv, cwd=setting.work, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return _wait(process, names, setting, logs, deadline)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait(
    process: subprocess.Popen[bytes], names: Sequence[str], setting: Setting, logs: Path, deadline: float
) -> int | Ended:
    current, began = "", time.monotonic()
    while process.poll() is None:
        now = time.monotonic()
        undone = next((name for name in names if not outcome_file(logs, name).exists()), "")
        if undone != current:
            current, began = undone, now
        if now >= deadline:
            return "no time left", now - began, "ended before it was done"
        if now - began > LONGEST[setting.device] and not current.startswith(UNLIMITED):
            return "failed", now - began, f"not done after {now - began:.0f} s; its log: {_log(logs)}"
        time.sleep(POLL_SECONDS)
    return process.returncode


def _log(logs: Path) -> Path:
    return logs / "log.txt"
