"""What a submission will be, decided and checked before anything is submitted."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unimmad.config import Recipe
from unimmad.files import write_text_aside
from unimmad.launching.options import LaunchOptions
from unimmad.launching.slurm_commands import (
    Partition,
    active_jobs,
    choose_partition,
    count_gpus,
    partitions,
    why_no_slurm,
)
from unimmad.launching.sweep import Variant, expand_sweep
from unimmad.parallel.deepspeed_config import engine_config, read_deepspeed_config
from unimmad.training.arguments import TrainArguments, parse_arguments

CONFIGS = Path("ds_configs")
"""Looked for where the user stands, then in the project."""
PROJECT = Path(__file__).parents[2]
JOBS_FOLDER = "slurm"
"""Inside the output folder: logs, batch script, what a job remembers."""

PICKLE_SUFFIX = "_submitted.pkl"
"""submitit's, behind a job's id."""


@dataclass(frozen=True)
class Task:
    """One training of the submission."""

    name: str
    words: tuple[str, ...]
    output_dir: Path


@dataclass(frozen=True)
class Plan:
    """A checked submission."""

    cluster: Literal["slurm", "local", "debug"]
    options: LaunchOptions
    gpus_per_node: int
    tasks_per_node: int
    ep_size: int
    tasks: tuple[Task, ...]
    output_dir: Path
    notes: tuple[str, ...]
    """What was decided in place of the user, in words."""

    @property
    def world_size(self) -> int:
        return self.options.nodes * self.tasks_per_node

    @property
    def jobs_folder(self) -> Path:
        return self.output_dir / JOBS_FOLDER


def make_plan(options: LaunchOptions) -> Plan:
    """Decide what the user left open, and check the rest.

    Raises:
        ValueError: SLURM, the partition or the nodes are not there, the trainer would refuse its options, the output
            folder can't be written.
    """
    lack = why_no_slurm()
    cluster, notes = _choose_cluster(options, lack)
    gpus, gpu_notes = _choose_gpus(options, cluster, lack)
    tasks_per_node = options.tasks_per_node or gpus or 1
    if cluster == "debug" and options.nodes * tasks_per_node > 1:
        raise ValueError("--cluster debug runs one rank in this process; use --cluster local for several")
    words, config_notes = _with_deepspeed_config(options.trainer_words, tasks_per_node)
    tasks, output_dir, ep_size = _tasks(options, words, options.nodes * tasks_per_node)
    if not options.dry_run:
        _check_writable(output_dir / JOBS_FOLDER)
        if cluster == "slurm" and not options.dependency:
            _check_free(output_dir / JOBS_FOLDER)
    return Plan(cluster, options, gpus, tasks_per_node, ep_size, tasks, output_dir, (*notes, *gpu_notes, *config_notes))


def describe(plan: Plan) -> str:
    """What will be submitted, for people."""
    ranks = f"nodes {plan.options.nodes} x ranks a node {plan.tasks_per_node} = {plan.world_size}"
    group = "inside a node" if plan.tasks_per_node % plan.ep_size == 0 else "across nodes"
    lines = [
        *plan.notes,
        f"{plan.cluster}: {ranks}, GPUs a node {plan.gpus_per_node}; rank = node x {plan.tasks_per_node} + local rank",
        f"experts: ep_size {plan.ep_size}, groups of neighbouring ranks {group}",
        f"output: {plan.output_dir}",
    ]
    lines += [f"task {number}: {task.name} in {task.output_dir}" for number, task in enumerate(plan.tasks) if task.name]
    lines.append(f"trainer: {' '.join(plan.tasks[0].words)}")
    return "\n".join(lines)


def _choose_cluster(options: LaunchOptions, lack: str) -> tuple[Literal["slurm", "local", "debug"], list[str]]:
    cluster = options.cluster
    if cluster == "slurm" and lack and not options.dry_run:
        raise ValueError(f"--cluster slurm: there is no SLURM here ({lack}); --cluster local trains on this machine")
    if cluster == "auto" and lack and options.nodes > 1:
        raise ValueError(
            f"there is no SLURM here ({lack}), and --nodes {options.nodes} needs one; to train on this machine "
            f"use --cluster local --tasks-per-node {options.nodes}"
        )
    if cluster in ("local", "debug") and options.nodes > 1:
        raise ValueError(
            f"--cluster {cluster} has one node, not {options.nodes}; for as many ranks on this machine use "
            f"--cluster local --tasks-per-node {options.nodes}"
        )
    if cluster == "auto":
        return ("local", [f"there is no SLURM here ({lack}): training on this machine"]) if lack else ("slurm", [])
    return cluster, []


def _choose_gpus(options: LaunchOptions, cluster: str, lack: str) -> tuple[int, list[str]]:
    if cluster == "slurm" and not lack:
        partition = choose_partition(partitions(), options.partition)
        _check_nodes(options, partition)
        if options.gpus_per_node is None and not options.gres:
            gpus = min(partition.gpus_of_nodes.values())
            return gpus, [f"--gpus-per-node {gpus}: what every node of partition {partition.name} has, by sinfo"]
    if cluster == "slurm" and options.gpus_per_node is None and not options.gres:
        return 0, [f"--gpus-per-node 0: there is no SLURM here to ask ({lack})"]
    if options.gpus_per_node is None and cluster in ("local", "debug"):
        import torch

        gpus = min(torch.cuda.device_count(), 1 if cluster == "debug" else torch.cuda.device_count())
        return gpus, [f"--gpus-per-node {gpus}: what this machine has"]
    return options.gpus_per_node or count_gpus(options.gres or ""), []


def _check_nodes(options: LaunchOptions, partition: Partition) -> None:
    there = len(partition.gpus_of_nodes)
    if options.nodes > there:
        raise ValueError(f"--nodes {options.nodes}: partition {partition.name} has {there}")
    largest = max(partition.gpus_of_nodes.values())
    if (options.gpus_per_node or 0) > largest:
        raise ValueError(
            f"--gpus-per-node {options.gpus_per_node}: a node of partition {partition.name} has at most {largest}"
        )


def _with_deepspeed_config(words: Sequence[str], tasks_per_node: int) -> tuple[list[str], list[str]]:
    """Unless the user names one, the shipped configuration whose expert groups are largest and fill nodes evenly."""
    # No other option of the trainer begins so, and argparse takes any unambiguous beginning.
    if any(word.startswith("--de") for word in words):
        return list(words), []
    folder = CONFIGS if CONFIGS.is_dir() else PROJECT / CONFIGS
    sizes = {
        int(path.stem.removeprefix("ep")): path
        for path in folder.glob("ep*.json")
        if path.stem.removeprefix("ep").isdecimal()
    }
    fitting = [size for size in sizes if tasks_per_node % size == 0]
    if not fitting:
        return list(words), []
    path = sizes[max(fitting)]
    note = f"--deepspeed_config {path}: the largest ep_size that fits in a node"
    return ["--deepspeed_config", str(path), *words], [note]


def _tasks(options: LaunchOptions, words: Sequence[str], world_size: int) -> tuple[tuple[Task, ...], Path, int]:
    variants = expand_sweep(options.sweep) if options.sweep else [Variant("", ())]
    first = trainer_arguments([*words, *variants[0].words])
    output_dir = (options.output_dir or _default_output_dir(first, bool(options.sweep))).absolute()
    tasks = []
    ep_size = 1
    for variant in variants:
        folder = output_dir / variant.name
        # The folder comes last, so that it wins over one among the trainer's words.
        task = Task(variant.name, (*words, *variant.words, "--output-dir", str(folder)), folder)
        arguments = trainer_arguments(task.words)
        settings = read_deepspeed_config(arguments.deepspeed_config)
        engine_config(settings, arguments.recipe.training, world_size)
        ep_size = settings.ep_size
        tasks.append(task)
    return tuple(tasks), output_dir, ep_size


def _default_output_dir(arguments: TrainArguments, sweeping: bool) -> Path:
    folder = arguments.output_dir
    return folder.with_name(f"{folder.name}-sweep") if sweeping else folder


def trainer_arguments(words: Sequence[str]) -> TrainArguments:
    """The trainer's options, checked as it checks them.

    Raises:
        ValueError: the trainer would refuse them.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return parse_arguments(words)
    except SystemExit as stop:
        if not stop.code:
            raise
        last = said.getvalue().strip().splitlines()[-1].removeprefix("train.py: error: ")
        raise ValueError(f"the trainer's options (behind --): {last}") from None


def recipe_of(plan: Plan) -> Recipe:
    return trainer_arguments(plan.tasks[0].words).recipe


def _check_free(folder: Path) -> None:
    """Two jobs in one folder would write over each other's checkpoints."""
    submitted = {path.name.removesuffix(PICKLE_SUFFIX) for path in folder.glob(f"*{PICKLE_SUFFIX}")}
    active = sorted(submitted & active_jobs()) if submitted else []
    if active:
        raise ValueError(
            f"job {active[0]} is still to train in {folder.parent}: scancel {active[0]}, take another --output-dir, "
            f"or queue behind it by --dependency afterany:{active[0]}"
        )


def _check_writable(folder: Path) -> None:
    write_text_aside(folder / "writable", "")
    (folder / "writable").unlink()
