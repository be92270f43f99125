"""Waits for submitted jobs: says when their state changes, streams rank 0's growing log, and tells how each ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from unimmad.checkpoint.folder import CheckpointFolder
from unimmad.launching.failure_notes import first_failure
from unimmad.launching.job import done_mark
from unimmad.launching.run_record import RunRecord
from unimmad.launching.slurm_commands import AWAY, ENDED, LOST, JobState, job_state
from unimmad.launching.submission import SubmittedJob


class LogTail:
    """A log file, from its beginning on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_to = 0

    def news(self) -> str:
        """What came since the last call; nothing while the file is not there."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read_to)
                gained = file.read()
        except OSError:
            return ""
        self._read_to += len(gained)
        return gained.decode("utf-8", errors="replace")


def last_lines(path: Path, count: int) -> str:
    """The end of a log file, without empty lines; of a progress line that was redrawn, its last state."""
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in LogTail(path).news().split("\n")]
    return "\n".join([line for line in lines if line.strip()][-count:])


POLL_S = 3.0
LINES_SHOWN = 20
NEVER_STARTED = "0:53"
"""Exit code of a job whose log SLURM could not open."""


@dataclass
class _Watched:
    job: SubmittedJob
    local: bool
    logs: list[LogTail]
    state: JobState = field(default_factory=lambda: JobState(""))
    ended_before: bool = False
    """Whether the last look saw it ended. A job between failing and being requeued seems so for a moment."""
    over: bool = False


def watch(jobs: Sequence[SubmittedJob], *, local: bool, follow: bool, out: TextIO = sys.stdout) -> list[JobState]:
    """Return the jobs' last states when all have ended."""
    watched = [
        _Watched(job, local, [LogTail(job.log(0, kind)) for kind in ("out", "err")] if follow else []) for job in jobs
    ]
    while True:
        for one in watched:
            if not one.over:
                _look(one, out)
        if all(one.over for one in watched):
            return [one.state for one in watched]
        time.sleep(POLL_S)


def _look(one: _Watched, out: TextIO) -> None:
    state = _local_state(one.job) if one.local else job_state(one.job.job_id)
    for log in one.logs:
        out.write(log.news())
    if state.state == AWAY:
        if one.state.state != AWAY:
            print(f"SLURM does not answer ({state.reason}); waiting", file=out)
        one.state = state
        return
    ended = state.state in ENDED or state.state == LOST
    if (state.state, state.restarts) != (one.state.state, one.state.restarts) and not ended:
        print(f"{one.job.job_id}: {_in_words(state)}", file=out)
    one.state = state
    one.over = ended and (one.ended_before or one.local)
    one.ended_before = ended
    out.flush()


def _in_words(state: JobState) -> str:
    argv = state.state.lower()
    if state.state == "PENDING" and state.reason not in ("", "None"):
        argv += f" ({state.reason})"
    if state.state == "RUNNING" and state.nodes not in ("", "(null)"):
        argv += f" on {state.nodes}"
    return argv + (f", restart {state.restarts}" if state.restarts else "")


def _local_state(job: SubmittedJob) -> JobState:
    if not job.handle.done():
        return JobState("RUNNING")
    return JobState("COMPLETED" if done_mark(job.jobs_folder, job.key).exists() else "FAILED")


def verdict(job: SubmittedJob, state: JobState) -> str:
    """How a job ended, in words; for a failure what failed first, and where to read on."""
    if state.state == "COMPLETED":
        return f"{job.job_id}: completed; {_newest(job)}"
    continues = f"{_newest(job)}, from which the same command continues"
    if state.state == "CANCELLED":
        return f"{job.job_id}: was cancelled; {continues}"
    failure = first_failure(job.jobs_folder, job.key)
    if failure is not None:
        trace = f"\n{failure.trace.rstrip()}" if failure.trace else ""
        return (
            f"{job.job_id}: rank {failure.rank} on {failure.node} failed: {failure.message}{trace}\n"
            f"its log: {job.log(failure.rank)}; {continues}"
        )
    return f"{job.job_id}: {_without_note(job, state)}; {continues}"


def _without_note(job: SubmittedJob, state: JobState) -> str:
    ended = f"ended as {state.state}" + (f" (exit code {state.exit_code})" if state.exit_code else "")
    log = job.log(0)
    if state.exit_code == NEVER_STARTED and not log.is_file():
        return (
            f"{ended}: the node can't write to {job.jobs_folder}; choose --output-dir on a file system that all nodes "
            "mount"
        )
    if state.state == "TIMEOUT":
        ended += ": the time limit came before all ranks had saved; give them more time by --signal-delay-s"
    said = last_lines(log, LINES_SHOWN)
    return f"{ended}; {log} ends with\n{said}\n{job.job_id}" if said else f"{ended}; {log} is empty"


def _newest(job: SubmittedJob) -> str:
    newest = CheckpointFolder(RunRecord(job.jobs_folder, job.key).run() or job.task.output_dir).newest()
    return "no checkpoint yet" if newest is None else f"newest checkpoint {newest}"
