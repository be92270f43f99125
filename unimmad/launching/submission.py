"""Hands a plan to submitit: as a SLURM job, as processes of this machine, or as the batch script alone."""

from __future__ import annotations

import contextlib
import io
import shlex
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit

from unimmad.launching.job import TrainingJob
from unimmad.launching.plan import Plan, Task, recipe_of
from unimmad.launching.private_submitit import ScriptWriter

PYTHON_OF_TASKS = f"""bash -c 'trap "" TERM USR2; exec "$@"' task {shlex.quote(sys.executable)}"""
"""Until Python has installed its handlers, a signal that asks to stop must not end a task, which would fail the job."""
MINUTES_WITHOUT_LIMIT = 60 * 24 * 365
"""submitit ends local jobs after a time; SLURM's own default rules on a cluster."""


@dataclass(frozen=True)
class SubmittedJob:
    """One training that was submitted."""

    job_id: str
    key: str
    """Of its :class:`TrainingJob`."""
    task: Task
    jobs_folder: Path
    handle: Any
    """submitit's job: for a local one, its process."""

    def log(self, rank: int | str, kind: str = "err") -> Path:
        return self.jobs_folder / f"{self.job_id}_{rank}_log.{kind}"


def submit(plan: Plan, tasks: Sequence[Task]) -> list[SubmittedJob]:
    """Submit; several tasks become one job array (locally they would all run at the same time).

    Raises:
        ValueError: SLURM refuses; its words.
    """
    plan.jobs_folder.mkdir(parents=True, exist_ok=True)
    executor = _slurm_executor(plan) if plan.cluster == "slurm" else _local_executor(plan)
    jobs = [_training_job(plan, task) for task in tasks]
    try:
        # submitit prints what sbatch says; we say it ourselves, in one line.
        with _interrupts_ignored(), contextlib.redirect_stderr(io.StringIO()), executor.batch():
            handles = [executor.submit(job) for job in jobs]
    except submitit.core.utils.FailedJobError as error:
        raise ValueError(f"SLURM refuses the job: {sbatch_words(str(error))}") from None
    return [
        SubmittedJob(handle.job_id, job.key, task, plan.jobs_folder, handle)
        for handle, job, task in zip(handles, jobs, tasks, strict=True)
    ]


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """So for processes that start inside, too: Ctrl-C at a waiting launcher does not reach a local job."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def batch_script(plan: Plan) -> str:
    """What would be given to sbatch."""
    executor = ScriptWriter(folder=plan.jobs_folder, python=PYTHON_OF_TASKS)
    executor.update_parameters(**slurm_parameters(plan))
    if len(plan.tasks) > 1:
        executor.parameters["map_count"] = len(plan.tasks)
    return executor.script()


def _training_job(plan: Plan, task: Task) -> TrainingJob:
    return TrainingJob(
        task.argv,
        plan.jobs_folder,
        plan.options.max_requeues,
        plan.tasks_per_node,
        plan.options.signal_delay_s,
        key=uuid.uuid4().hex[:12],
    )


def _slurm_executor(plan: Plan) -> Any:
    executor = submitit.SlurmExecutor(folder=plan.jobs_folder, python=PYTHON_OF_TASKS)
    executor.update_parameters(**slurm_parameters(plan))
    return executor


def _local_executor(plan: Plan) -> Any:
    executor = submitit.LocalExecutor(folder=plan.jobs_folder)
    executor.update_parameters(
        tasks_per_node=plan.tasks_per_node,
        gpus_per_node=plan.gpus_per_node,
        timeout_min=plan.options.timeout_min or MINUTES_WITHOUT_LIMIT,
        signal_delay_s=plan.options.signal_delay_s,
        setup=list(plan.options.setup),
    )
    return executor


def slurm_parameters(plan: Plan) -> dict[str, Any]:
    """submitit's parameters. None is what keeps its own defaults (5 minutes, a wckey) out of the script."""
    options = plan.options
    named = {
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "constraint": options.constraint,
        "exclude": options.exclude,
        "nodelist": options.nodelist,
        "gres": options.gres,
        "comment": options.comment,
        "dependency": options.dependency,
        "mail_user": options.mail_user,
        "cpus_per_task": options.cpus_per_task,
        "mem": None if options.mem_gb is None else f"{round(options.mem_gb * 1024)}M",
        "gpus_per_node": None if options.gres else plan.gpus_per_node or None,
    }
    return {
        **{key: value for key, value in named.items() if value is not None},
        "time": options.timeout_min,
        "wckey": None,
        "job_name": options.name or f"unimmad-{recipe_of(plan).name}",
        "nodes": options.nodes,
        "ntasks_per_node": plan.tasks_per_node,
        "signal_delay_s": options.signal_delay_s,
        "setup": [*options.setup, *_checks_of_node()],
        "srun_args": _srun_words(plan),
        "additional_parameters": _further_parameters(plan),
    }


def _srun_words(plan: Plan) -> list[str]:
    # One rank that ends badly ends the job at once. Neighbouring ranks share a node, whatever the site's habit.
    argv = ["--kill-on-bad-exit=1", "--distribution=block"]
    if plan.options.cpus_per_task is not None:
        # srun does not take it over from the batch script since SLURM 22.05.
        argv.append(f"--cpus-per-task={plan.options.cpus_per_task}")
    return [*argv, *plan.options.srun_args]


def _further_parameters(plan: Plan) -> dict[str, Any]:
    options = plan.options
    further: dict[str, Any] = {"requeue": True} if options.max_requeues else {"no-requeue": True}
    if options.reservation is not None:
        further["reservation"] = options.reservation
    return further | dict(options.slurm_args)


def _checks_of_node() -> list[str]:
    return [
        'command -v srun >/dev/null || { echo "unimmad launch: no srun on compute node $SLURMD_NODENAME: install '
        "SLURM's client commands there, or put them on the PATH by --setup\" >&2; exit 127; }"
    ]


def sbatch_words(text: str) -> str:
    """The line that says why, out of submitit's report of a command that failed."""
    lines: Sequence[str] = [line.strip() for line in text.splitlines() if "sbatch: error:" in line]
    return "; ".join(line.removeprefix("sbatch: error: ") for line in lines) or text.strip()
