"""The table at the end of a sweep: what each value came to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unimmad.checkpoint.folder import CheckpointFolder, read_state
from unimmad.launching.slurm_commands import JobState
from unimmad.launching.submission import SubmittedJob

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
