"""``--profile``: what rank 0 does in some steps, as a trace that chrome://tracing and Perfetto show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, schedule

from unimmad.parallel.world import World
from unimmad.ranks.errors import SharedError
from unimmad.serialization.atomic_write import write_aside

TRACE = Path("profile/rank-00000.json.gz")
"""In a run folder."""


@contextmanager
def profiling(
    steps: range | None, run: Path, world: World, start: int, end: int, say: Callable[[str], None]
) -> Iterator[Callable[[], object]]:
    """Record ``steps`` (counted from 1) of a run that takes steps ``start`` + 1 to ``end``; the trace goes to ``run``.

    Gives what to call after each step. A step before the first is recorded and thrown away, since the first recorded
    one is slow. Steps that are behind a run which continues are left out, and that is said.

    Raises:
        SharedError: the run ends before them.
    """
    if steps is not None and steps[-1] > end:
        raise SharedError.of_all(f"--profile {_words(steps)}: this run ends with step {end}", world.size)
    if steps is not None and steps[0] <= start:
        say(f"--profile {_words(steps)}: nothing is recorded, since the run continues behind step {start}")
        steps = None
    if steps is None or not world.is_main:
        yield lambda: None
        return
    before = steps[0] - 1 - start
    warm_up = min(1, before)

    def write(recorded: profile) -> None:
        try:
            write_aside(run / TRACE, lambda path: recorded.export_chrome_trace(str(path)))
        except ValueError as error:  # training is worth more than its trace
            say(f"no trace: {error}")
            return
        say(f"trace of steps {_words(steps)}: {run / TRACE} (open it in https://ui.perfetto.dev or chrome://tracing)")

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if world.device.type == "cuda" else [])]
    phases = schedule(skip_first=before - warm_up, wait=0, warmup=warm_up, active=len(steps), repeat=1)
    with profile(activities=activities, schedule=phases, on_trace_ready=write) as profiler:
        yield profiler.step


def _words(steps: range) -> str:
    return f"{steps[0]}:{steps[-1]}" if len(steps) > 1 else f"{steps[0]}"
