"""The command ``unimmad launch``, which ``slurm/launch.py`` is too: plan, say so, submit, and wait where asked to."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import submitit
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unimmad.checkpoint.folder import CheckpointFolder, read_state
from unimmad.launching.options import parse_options
from unimmad.launching.plan import Plan, Task, describe, make_plan
from unimmad.launching.slurm_commands import JobState
from unimmad.launching.submission import SubmittedJob, batch_script, submit
from unimmad.launching.watch import verdict, watch
from unimmad.ranks.launcher import program
from unimmad.serialization.atomic_write import write_text_aside

SHOWN = ("loss/total", "loss/reconstruction", "test/I-AUROC", "test/P-AUROC", "test/AUPRO")
"""Scalars of TensorBoard; those of the test split are there where training evaluates on its way."""


def sweep_table(jobs: Sequence[SubmittedJob], states: Sequence[JobState]) -> str:
    """Markdown: a row for each training, with the last value of each scalar that any of them logged."""
    scalars = [_last_scalars(job.task.output_dir) for job in jobs]
    columns = [name for name in SHOWN if any(name in of_job for of_job in scalars)]
    rows = [["training", "job", "ended", "step", *columns], ["---", "---", "---", *["---:"] * (1 + len(columns))]]
    for job, state, of_job in zip(jobs, states, scalars, strict=True):
        values = [f"{of_job[name]:.4f}" if name in of_job else "n/a" for name in columns]
        rows.append([job.task.name, job.job_id, state.state.lower(), _step(job.task.output_dir), *values])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _last_scalars(run: Path) -> dict[str, float]:
    # As RunLog names it; importing that would load torch where a user only submits.
    folder = run / "tensorboard"
    if not folder.is_dir():
        return {}
    events = EventAccumulator(str(folder))
    events.Reload()
    return {name: events.Scalars(name)[-1].value for name in SHOWN if name in events.Tags()["scalars"]}


def _step(run: Path) -> str:
    newest = CheckpointFolder(run).newest()
    return "0" if newest is None else str(read_state(newest)["step"])


TABLE_NAME = "sweep.md"


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 submitted (with ``--wait``: completed), 1 a job failed, 2 bad input, 130 interrupted."""
    try:
        options = parse_options(sys.argv[1:] if argv is None else argv)
        plan = make_plan(options)
        print(describe(plan), flush=True)
        if options.dry_run:
            print(batch_script(plan) if plan.cluster == "slurm" else "nothing is submitted")
            return 0
        if plan.cluster == "debug":
            return _train_here(plan)
        return _submit_and_wait(plan)
    except ValueError as error:
        print(f"{program()}: {error}", file=sys.stderr)
        return 2


def _submit_and_wait(plan: Plan) -> int:
    waiting = plan.options.wait
    # On one machine the trainings of a sweep come one after the other.
    batches = [[task] for task in plan.tasks] if plan.cluster == "local" else [list(plan.tasks)]
    if len(batches) > 1 and not waiting:
        print("a sweep on this machine runs one training after the other: waiting for each")
        waiting = True
    jobs: list[SubmittedJob] = []
    states: list[JobState] = []
    for batch in batches:
        submitted = _submit(plan, batch)
        if not waiting:
            return 0
        try:
            states += watch(submitted, local=plan.cluster == "local", follow=plan.options.follow)
        except KeyboardInterrupt:
            print(f"\nno longer waiting; {_how_to_cancel(plan, submitted)}", file=sys.stderr)
            return 130
        jobs += submitted
    return _conclude(plan, jobs, states)


def _submit(plan: Plan, tasks: Sequence[Task]) -> list[SubmittedJob]:
    with _own_environment():
        jobs = submit(plan, tasks)
    for job in jobs:
        name = f" ({job.task.name})" if job.task.name else ""
        print(f"job {job.job_id}{name}: logs {job.log('RANK')} and .out")
    print(_how_to_watch(plan, jobs), flush=True)
    return jobs


def _how_to_watch(plan: Plan, jobs: Sequence[SubmittedJob]) -> str:
    watching = f"tail -F {jobs[0].log(0)}"
    if plan.cluster == "slurm":
        watching = f"squeue -j {_array_id(jobs)}   or   {watching}"
    return f"to watch:  {watching}\nto cancel: {_how_to_cancel(plan, jobs)}"


def _how_to_cancel(plan: Plan, jobs: Sequence[SubmittedJob]) -> str:
    if plan.cluster == "slurm":
        return f"scancel {_array_id(jobs)}"
    return "kill " + " ".join(job.job_id for job in jobs)


def _array_id(jobs: Sequence[SubmittedJob]) -> str:
    return jobs[0].job_id.partition("_")[0]


def _conclude(plan: Plan, jobs: Sequence[SubmittedJob], states: Sequence[JobState]) -> int:
    failed = False
    for job, state in zip(jobs, states, strict=True):
        bad = state.state != "COMPLETED"
        failed = failed or bad
        print(verdict(job, state), file=sys.stderr if bad else sys.stdout)
    if plan.options.sweep:
        table = sweep_table(jobs, states)
        write_text_aside(plan.output_dir / TABLE_NAME, table)
        print(f"\n{table}\n{plan.output_dir / TABLE_NAME}")
    return int(failed)


def _train_here(plan: Plan) -> int:
    """One rank in this process, for a debugger: errors come as they are."""
    from unimmad.parallel.world import join_world, leave_world
    from unimmad.ranks.launcher import log_from_main
    from unimmad.training.arguments import parse_arguments
    from unimmad.training.run import train

    for task in plan.tasks:
        world = join_world()
        log_from_main(world.is_main)
        train(parse_arguments(task.argv), world)
    leave_world()
    return 0


@contextlib.contextmanager
def _own_environment() -> Iterator[None]:
    """Inside another job's shell, that job's SLURM variables would shape ours; which cluster it is stays."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with submitit.helpers.clean_env():
        os.environ.update(kept)
        yield
