"""The cells of a comparison as one job array, a job each, which SLURM may stop and start again at any time."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import submitit
from submitit.helpers import DelayedSubmission

from unimmad.launching.options import parse_options
from unimmad.launching.plan import make_plan
from unimmad.launching.submission import PYTHON_OF_TASKS, sbatch_words, slurm_parameters


@dataclass(frozen=True)
class CellJob:
    """One cell; begun again, it goes on where it was."""

    argv: tuple[str, ...]
    """Of ``unimmad compare``."""

    def __call__(self) -> None:
        import subprocess

        with subprocess.Popen([sys.executable, "-m", "unimmad", "compare", *self.argv]) as child:
            try:
                status = child.wait()
            except BaseException:  # submitit leaves so, when the job is to be started again
                child.terminate()
                child.wait()
                raise
        if status:
            raise RuntimeError(f"the cell ended with status {status}; the table says why")

    def checkpoint(self) -> DelayedSubmission:
        """submitit calls it when the job is to be started again."""
        return DelayedSubmission(self)


def submit_cells(cells: Sequence[str], argv: Sequence[str], launch_argv: Sequence[str], output_dir: Path) -> None:
    """Submit a job for each cell and say how to watch them.

    Args:
        cells: ``LABEL/SEED`` each.
        argv: of ``unimmad compare``, ``--slurm`` among them.
        launch_argv: options of ``unimmad launch``; each job is one task on one node.
        output_dir: of the comparison.

    Raises:
        ValueError: there is no SLURM, it refuses, an option is wrong, or cells of this comparison are still to run.
    """
    forced = ["--cluster", "slurm", "--nodes", "1", "--tasks-per-node", "1", "--output-dir", str(output_dir)]
    options = parse_options([*launch_argv, *forced])
    if options.trainer_argv:
        raise ValueError(f"{' '.join(options.trainer_argv)}: say what is trained before the first --, by --set")
    plan = make_plan(replace(options, name=options.name or "unimmad-compare"))
    if options.gpus_per_node is None and options.gres is None:
        plan = replace(plan, gpus_per_node=min(plan.gpus_per_node, 1))  # a job is one process
    executor = submitit.SlurmExecutor(folder=plan.jobs_folder, python=PYTHON_OF_TASKS)
    executor.update_parameters(**slurm_parameters(plan))
    words = [word for word in argv if word != "--slurm"]
    try:
        with executor.batch():
            jobs = [executor.submit(CellJob((*words, "--only", cell))) for cell in cells]
    except submitit.core.utils.FailedJobError as error:
        raise ValueError(f"SLURM refuses the job: {sbatch_words(str(error))}") from None
    for job, cell in zip(jobs, cells, strict=True):
        print(f"job {job.job_id}: {cell}")
    array = jobs[0].job_id.partition("_")[0]
    print(f"to watch:  squeue -j {array}   or   tail -F {plan.jobs_folder}/{array}_*_log.err")
    print(f"the table: unimmad compare {shlex.join(words)} --table")
