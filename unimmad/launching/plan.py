"""What a submission will be, decided and checked before anything is submitted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unimmad.config import Recipe
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
from unimmad.parallel.deepspeed_config import SHIPPED_CONFIGS, WHOLE_TENSORS, engine_config, read_deepspeed_config
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.training.arguments import TrainArguments, parse_arguments

CONFIGS = Path("ds_configs")
"""Looked for where the user stands, then among those that are shipped."""
JOBS_FOLDER = "slurm"
"""Inside the output folder: logs, batch script, what a job remembers."""

PICKLE_SUFFIX = "_submitted.pkl"
"""submitit's, behind a job's id."""


@dataclass(frozen=True)
class Task:
    """One training of the submission."""

    name: str
    argv: tuple[str, ...]
    output_dir: Path
    ep_size: int


@dataclass(frozen=True)
class Plan:
    """A checked submission."""

    cluster: Literal["slurm", "local", "debug"]
    options: LaunchOptions
    gpus_per_node: int
    tasks_per_node: int
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
    tasks, output_dir, config_notes = _tasks(options, tasks_per_node)
    if not options.dry_run:
        _check_writable(output_dir / JOBS_FOLDER)
        if cluster == "slurm" and not options.dependency:
            _check_free(output_dir / JOBS_FOLDER)
    return Plan(cluster, options, gpus, tasks_per_node, tasks, output_dir, (*notes, *gpu_notes, *config_notes))


def describe(plan: Plan) -> str:
    """What will be submitted, for people."""
    ranks = f"nodes {plan.options.nodes} x ranks a node {plan.tasks_per_node} = {plan.world_size}"
    lines = [
        *plan.notes,
        f"{plan.cluster}: {ranks}, GPUs a node {plan.gpus_per_node}; rank = node x {plan.tasks_per_node} + local rank",
        *(_experts(ep_size, plan.tasks_per_node) for ep_size in sorted({task.ep_size for task in plan.tasks})),
        f"output: {plan.output_dir}",
    ]
    lines += [f"task {number}: {task.name} in {task.output_dir}" for number, task in enumerate(plan.tasks) if task.name]
    lines.append(f"trainer: {' '.join(plan.tasks[0].argv)}")
    return "\n".join(lines)


def _experts(ep_size: int, tasks_per_node: int) -> str:
    group = "inside a node" if tasks_per_node % ep_size == 0 else "across nodes"
    return f"experts: ep_size {ep_size}, groups of neighbouring ranks {group}"


def _choose_cluster(options: LaunchOptions, lack: str) -> tuple[Literal["slurm", "local", "debug"], list[str]]:
    cluster = options.cluster
    if cluster == "slurm" and lack and not options.dry_run:
        raise ValueError(f"--cluster slurm: there is no SLURM here ({lack}); --cluster local trains on this machine")
    if cluster == "auto" and lack and options.dry_run:
        return "slurm", [f"there is no SLURM here ({lack}): this is what would be submitted where there is one"]
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


def _choose_deepspeed_config(tasks_per_node: int, recipe: Recipe) -> tuple[list[str], list[str]]:
    """A shipped configuration, as words for the trainer, and why.

    With one bank every rank holds it anyway, and spreading the leaders only costs sending; banks are spread as far as
    a node reaches, in groups that fill it evenly.
    """
    counts = recipe.model.expert_counts
    if not counts or recipe.training.optimizer in WHOLE_TENSORS:
        return [], []  # the trainer's own choice
    banks = counts[1] if len(counts) > 1 else 1
    folder = CONFIGS if CONFIGS.is_dir() else SHIPPED_CONFIGS
    sizes = {
        int(path.stem.removeprefix("ep")): path
        for path in folder.glob("ep*.json")
        if path.stem.removeprefix("ep").isdecimal()
    }
    fitting = [size for size in sizes if tasks_per_node % size == 0 and (banks > 1 or size == 1)]
    if not fitting:
        return [], []
    path = sizes[max(fitting)]
    why = (
        f"the largest ep_size that fits in a node, for model.banks {banks}"
        if banks > 1
        else "with model.banks 1 the fastest, since at ep_size 1 no feature map is sent"
    )
    return ["--deepspeed_config", str(path)], [f"--deepspeed_config {path}: {why}"]


def _tasks(options: LaunchOptions, tasks_per_node: int) -> tuple[tuple[Task, ...], Path, list[str]]:
    """The trainings, the output folder of all, and what was decided for them."""
    variants = expand_sweep(options.sweep) if options.sweep else [Variant("", ())]
    argv = options.trainer_argv
    first = parse_arguments([*argv, *variants[0].argv])
    output_dir = (options.output_dir or _default_output_dir(first, bool(options.sweep))).absolute()
    # No other option of the trainer begins so, and argparse takes any unambiguous beginning.
    chosen = any(word.startswith("--dee") for word in argv)
    tasks, notes = [], []
    for variant in variants:
        config: list[str] = []
        if not chosen:
            recipe = parse_arguments([*argv, *variant.argv]).recipe
            config, why = _choose_deepspeed_config(tasks_per_node, recipe)
            notes += why
        folder = output_dir / variant.name
        # The folder comes last, so that it wins over one among the trainer's words.
        ours = (*config, *argv, *variant.argv, "--output-dir", str(folder))
        arguments = parse_arguments(ours)
        settings = read_deepspeed_config(arguments.deepspeed_config)
        engine_config(settings, arguments.recipe.training, options.nodes * tasks_per_node)
        tasks.append(Task(variant.name, ours, folder, settings.ep_size))
    return tuple(tasks), output_dir, list(dict.fromkeys(notes))


def _default_output_dir(arguments: TrainArguments, sweeping: bool) -> Path:
    folder = arguments.output_dir
    return folder.with_name(f"{folder.name}-sweep") if sweeping else folder


def recipe_of(plan: Plan) -> Recipe:
    return parse_arguments(plan.tasks[0].argv).recipe


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
