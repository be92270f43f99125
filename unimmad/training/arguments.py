"""The trainer's command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from unimmad.checkpoint.folder import CHECKPOINTS, NO_VERIFY_HELP, STATE_NAME
from unimmad.config import DEFAULT_RECIPE, Recipe, load_recipe
from unimmad.data.location import DataFolder, parse_data_folder
from unimmad.methods.registry import METHODS, Registry, settings_of
from unimmad.parallel.deepspeed_config import default_deepspeed_config, find_deepspeed_config
from unimmad.training.growth import Growth

TRAINER = "unimmad train"
"""The command that takes these options."""

DESCRIPTION = """Train UniMMAD, on one process or on several that a launcher starts; SLURM: unimmad launch.

    unimmad train --recipe paper --data shards/mvtec shards/visa
    deepspeed --module unimmad.train --deepspeed_config ep4       on all GPUs of this machine
    torchrun --nproc-per-node 2 -m unimmad.train                  the same by torchrun
"""


@dataclass(frozen=True)
class TrainArguments:
    """What a user asked for."""

    recipe: Recipe
    deepspeed_config: Path
    data: tuple[DataFolder, ...]
    """Shard folders, local or by URL; empty: the synthetic set."""
    output_dir: Path
    max_steps: int | None
    resume: str
    init_from: Path | None
    deterministic: bool = False
    """Only GPUs need it; CPUs give the same bits with the same number of threads."""
    verify: bool = True
    """Whether files of a checkpoint to continue from, or of ``init_from``, are held against their digests."""
    profile: range | None = None
    """Steps to record a trace of, counted from 1."""
    methods: Registry = field(default_factory=lambda: METHODS)
    """The recipe's among them."""
    growth: Growth | None = None
    """Of ``unimmad grow``: ``data`` are then of new classes."""


class ArgumentParser(argparse.ArgumentParser):
    """One whose errors are ValueErrors."""

    def __init__(self, *arguments: Any, command: str = TRAINER, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._command = command

    def error(self, message: str) -> NoReturn:
        """Each of many ranks would print the usage."""
        raise ValueError(f"{message}; {self._command} --help lists the options")


def parse_arguments(
    argv: Sequence[str] | None = None, prog: str = TRAINER, methods: Registry = METHODS
) -> TrainArguments:
    """
    Args:
        argv: None: the command line's.
        prog: what the help calls the program.
        methods: those that a recipe may name.

    Raises:
        ValueError: an option is unknown or ill-formed; the recipe, an override, a number or a data URL is wrong.
    """
    given = training_parser(prog).parse_args(argv)
    overrides = [*given.overrides, *([f"data.on_error={given.on_error}"] if given.on_error else [])]
    recipe = load_recipe(given.recipe, overrides, settings_of(methods))
    check_one_folder(given.resume, given.output_dir)
    least = 0 if methods[recipe.method].sees_samples_once_more else 1  # fitting alone gives something to score with
    if given.max_steps is not None and given.max_steps < least:
        raise ValueError(f"--max-steps {given.max_steps} must be {least} or more")
    return TrainArguments(
        recipe=recipe,
        deepspeed_config=given.deepspeed_config or default_deepspeed_config(recipe.training),
        data=tuple(parse_data_folder(text) for text in given.data),
        output_dir=given.output_dir or Path("runs") / recipe.name,
        max_steps=given.max_steps,
        resume=given.resume,
        init_from=given.init_from,
        deterministic=given.deterministic,
        verify=not given.no_verify,
        profile=None if given.profile is None else _profiled_steps(given.profile),
        methods=methods,
    )


def training_parser(prog: str = TRAINER) -> argparse.ArgumentParser:
    """All options."""
    parser = ArgumentParser(prog=prog, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipe", default=DEFAULT_RECIPE, help="a shipped recipe's name or a YAML file (default: demo)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override one setting"
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=[],
        metavar="DIR|URL",
        help="shard folders, or their URLs (s3://..., https://..., 'pipe:COMMAND {}'); default: the synthetic set",
    )
    add_run_options(parser, "default: runs/RECIPE")
    parser.add_argument("--init-from", type=Path, metavar="DIR", help="take weights only from this checkpoint")
    parser.add_argument(
        "--profile", metavar="STEPS", help="write a trace of this step, or of these (10:13), counted from 1"
    )
    return parser


def add_run_options(parser: argparse.ArgumentParser, default_folder: str) -> None:
    """Those of every command that trains: where and how, but not what."""
    parser.add_argument(
        "--deepspeed_config",
        "--deepspeed-config",
        type=find_deepspeed_config,
        metavar="FILE",
        help="DeepSpeed's JSON, or the name of a shipped one (default: ep1, or zero0 where ZeRO can't be)",
    )
    parser.add_argument(
        "--on-error", choices=["stop", "skip"], help="at a corrupt sample; short for --set data.on_error=... (stop)"
    )
    parser.add_argument("--output-dir", type=Path, help=default_folder)
    parser.add_argument("--max-steps", type=int, help="stop after this step, with a checkpoint to continue from")
    parser.add_argument("--resume", default="auto", metavar="auto|never|PATH", help="which run to continue")
    parser.add_argument("--no-verify", action="store_true", help=NO_VERIFY_HELP)
    parser.add_argument(
        "--deterministic", action="store_true", help="on GPUs: slower kernels that give the same bits in every run"
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher passes it


def check_one_folder(resume: str, output_dir: Path | None) -> None:
    """
    Raises:
        ValueError: a run is to be continued in another folder than its own.
    """
    if output_dir is None or resume in ("auto", "never"):
        return
    source = Path(resume)
    if (source / STATE_NAME).is_file():
        source = source.parent
    run = source.parent if source.name == CHECKPOINTS else source
    if (run / CHECKPOINTS).is_dir() and run.resolve() != output_dir.resolve():
        raise ValueError(
            f"--resume {resume} goes on in that run's own folder, not in --output-dir {output_dir}: leave one of them "
            f"out, or begin a new run from its weights with --init-from {resume} in place of --resume"
        )


def _profiled_steps(text: str) -> range:
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text, re.ASCII)
    steps = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
    if not steps or steps[0] < 1:
        raise ValueError(f"--profile {text!r}: give a step counted from 1, as 3, or the first and the last, as 10:13")
    return steps
