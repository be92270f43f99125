"""The command line of ``unimmad grow``: the checkpoint's own recipe decides what is not said."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unimmad.checkpoint.folder import CHECKPOINTS, STATE_NAME, find_checkpoint, read_state
from unimmad.config import Recipe, as_it_was_meant, override_recipe, parse_recipe
from unimmad.data.location import DataFolder, parse_data_folder, recorded_data_folder
from unimmad.methods.registry import METHODS, Registry, settings_of
from unimmad.parallel.deepspeed_config import default_deepspeed_config
from unimmad.training.arguments import ArgumentParser, TrainArguments, add_run_options, check_one_folder
from unimmad.training.grown_model import check_can_grow, grown_recipe
from unimmad.training.growth import Growth

GROWER = "unimmad grow"
"""The command that takes these options."""
REPLAY_FRACTION = 0.01
"""The paper's."""
DESCRIPTION = """Teach a checkpoint new classes: gates and leaders learn, all else stays; to a new checkpoint.

    unimmad grow --checkpoint runs/mine --data data/new
    unimmad grow --checkpoint runs/mine --data data/new --new-leaders 8 --max-forgetting 0.02
    unimmad grow --checkpoint runs/mine --data data/new --replay-fraction 0      without old training images
    torchrun --nproc-per-node 2 -m unimmad grow ...                              on several GPUs
    deepspeed --no_local_rank --module unimmad grow ... --deepspeed_config ep4   the same by deepspeed

A method that is fitted gets banks of the new classes. See docs/continual.md.
"""


def parse_grow_arguments(
    argv: Sequence[str] | None = None, prog: str = GROWER, methods: Registry = METHODS
) -> TrainArguments:
    """
    Args:
        argv: None: the command line's.
        prog: what the help calls the program.
        methods: the checkpoint's among them.

    Raises:
        ValueError: an option is unknown or ill-formed, there is no such checkpoint, it can't grow so, or there is
            nothing to replay.
    """
    given = growing_parser(prog).parse_args(argv)
    source = find_checkpoint(given.checkpoint)
    state = read_state(source)
    origin = f"{source / STATE_NAME}: recipe"
    own = parse_recipe(as_it_was_meant(state["recipe"]), origin, settings_of(methods))
    overrides = [*given.overrides, *([f"data.on_error={given.on_error}"] if given.on_error else [])]
    recipe = override_recipe(own, overrides, settings_of(methods))
    _check_same_model(own, recipe)
    _check_numbers(given)
    replay = given.replay_fraction
    if methods[recipe.method].is_fitted:
        if replay:
            raise ValueError(
                f"--replay-fraction: {recipe.method} keeps its old banks, and sees no old image: leave it out"
            )
        replay = 0.0
    replay = REPLAY_FRACTION if replay is None else replay
    recipe, new_banks = grown_recipe(recipe, given.new_leaders, given.own_bank)
    growth = Growth(
        source=source,
        old_data=_old_data(given.old_data, state, str(source / STATE_NAME)),
        replay_fraction=replay,
        distillation=given.distillation if given.distillation is not None else float(not replay),
        new_leaders=given.new_leaders,
        new_banks=new_banks,
        replace=given.replace,
        max_forgetting=given.max_forgetting,
    )
    check_can_grow(recipe, growth, methods)
    check_one_folder(given.resume, given.output_dir)
    return TrainArguments(
        recipe=recipe,
        deepspeed_config=given.deepspeed_config or default_deepspeed_config(recipe.training),
        data=tuple(parse_data_folder(text) for text in given.data),
        output_dir=given.output_dir or _beside(source),
        max_steps=given.max_steps,
        resume=given.resume,
        init_from=None,
        deterministic=given.deterministic,
        verify=not given.no_verify,
        methods=methods,
        growth=growth,
    )


def growing_parser(prog: str = GROWER) -> argparse.ArgumentParser:
    """All options."""
    parser = ArgumentParser(
        prog=prog, description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, command=GROWER
    )
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="run or checkpoint that grows")
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="DIR|URL",
        help="shards of new classes; with test images they are scored",
    )
    parser.add_argument(
        "--old-data",
        nargs="+",
        metavar="DIR|URL",
        help="shards that the checkpoint was trained on, or some of them (default: where it says that they are)",
    )
    parser.add_argument(
        "--replay-fraction",
        type=float,
        metavar="SHARE",
        help="share of the old training images that are seen again, one a class at least; 0: none (default: "
        f"{REPLAY_FRACTION})",
    )
    parser.add_argument(
        "--distillation",
        type=float,
        metavar="WEIGHT",
        help="weight of staying with what the old leaders and gates say of the same images (default: 1 with "
        "--replay-fraction 0, else 0)",
    )
    parser.add_argument("--new-leaders", type=int, default=0, metavar="N", help="leaders of each branch that come in")
    parser.add_argument("--own-bank", action="store_true", help="the new leaders get base kernels of their own")
    parser.add_argument(
        "--max-forgetting",
        type=float,
        metavar="LOSS",
        help="finish no checkpoint in which an old class lost more of its I-AUROC (0.02)",
    )
    parser.add_argument(
        "--replace",
        action="store_true",
        help="classes that the checkpoint knows are trained again, on these images alone",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change one setting of the recipe",
    )
    add_run_options(parser, "default: beside the old run, with -grown behind its name")
    return parser


def _check_numbers(given: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: a number is out of its range.
    """
    for option, least, most in (("replay_fraction", 0, 1), ("distillation", 0, 1e6), ("max_forgetting", 0, 1)):
        value = getattr(given, option)
        if value is not None and not (math.isfinite(value) and least <= value <= most):
            raise ValueError(f"--{option.replace('_', '-')} {value:g} must be from {least:g} to {most:g}")
    if given.new_leaders < 0:
        raise ValueError(f"--new-leaders {given.new_leaders} must be 0 or more")
    if given.own_bank and not given.new_leaders:
        raise ValueError("--own-bank is for --new-leaders N: say how many")
    if given.max_steps is not None and given.max_steps < 1:
        raise ValueError(f"--max-steps {given.max_steps} must be 1 or more")


def _check_same_model(own: Recipe[Any], recipe: Recipe[Any]) -> None:
    """
    Raises:
        ValueError: an override changes what the checkpoint's weights are of; slots may become more.
    """
    theirs, ours = own.model.model_dump(), recipe.model.model_dump()
    if own.model.expert_counts and recipe.model.modality_slots > own.model.modality_slots:
        del theirs["modality_slots"]
    changed = next((key for key in theirs if theirs[key] != ours.get(key)), None)
    if own.method != recipe.method or changed:
        what = "method" if own.method != recipe.method else f"model.{changed}"
        raise ValueError(f"--set {what}: the checkpoint's network stays as it is; --new-leaders adds to it")


def _old_data(typed: Sequence[str] | None, state: dict[str, Any], origin: str) -> tuple[DataFolder, ...]:
    """As typed; else those that the checkpoint names, where they are all here."""
    if typed:
        return tuple(parse_data_folder(text) for text in typed)
    folders = [recorded_data_folder(text, origin) for text in state.get("data", [])]
    return tuple(folders) if all(folder.is_dir() for folder in folders if isinstance(folder, Path)) else ()


def _beside(source: Path) -> Path:
    source = source.resolve()  # of "." there is no name
    run = source.parent.parent if source.parent.name == CHECKPOINTS else source
    return run.with_name(f"{run.name}-grown")
