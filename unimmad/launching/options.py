"""The options of ``unimmad launch``: the command line, and a site's defaults below it."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from unimmad.serialization.documents import MAX_YAML_BYTES, parse_yaml, read_limited

SITE_FILE = Path(__file__).with_name("site.yaml")
"""In a checkout a link to slurm/site.yaml."""
TRAINER_MARK = "--"
Cluster = Literal["auto", "slurm", "local", "debug"]


@dataclass(frozen=True)
class LaunchOptions:
    """What a user asked for; None where nothing was said, and then SLURM is told nothing."""

    nodes: int
    gpus_per_node: int | None
    tasks_per_node: int | None
    cpus_per_task: int | None
    mem_gb: float | None
    timeout_min: int | None
    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    exclude: str | None
    nodelist: str | None
    reservation: str | None
    gres: str | None
    name: str | None
    comment: str | None
    dependency: str | None
    mail_user: str | None
    setup: tuple[str, ...]
    """Shell lines of the batch script, before training starts."""
    srun_args: tuple[str, ...]
    slurm_args: tuple[tuple[str, str], ...]
    """Options of sbatch that have no own option here: name without dashes, value."""
    output_dir: Path | None
    max_requeues: int
    signal_delay_s: int
    cluster: Cluster
    dry_run: bool
    wait: bool
    follow: bool
    sweep: tuple[str, ...]
    """``KEY=VALUE,VALUE`` each; every combination is trained."""
    trainer_argv: tuple[str, ...]
    """Everything behind ``--``."""


def parse_options(argv: Sequence[str]) -> LaunchOptions:
    """Read the command line over the site's defaults.

    Raises:
        ValueError: an unknown or ill-formed option, there or in the site file; names it.
    """
    ours, trainer_argv = _split(argv)
    parser = launch_parser()
    site_file = parser.parse_known_args(ours)[0].site
    given = parser.parse_args([*_site_words(site_file, parser), *ours])
    values = {key: value for key, value in vars(given).items() if key not in ("site", "srun_arg", "slurm_arg")}
    values |= {
        "setup": tuple(given.setup),
        "sweep": tuple(given.sweep),
        "srun_args": tuple(given.srun_arg),
        "slurm_args": tuple(_key_and_value(text) for text in given.slurm_arg),
        "trainer_argv": tuple(trainer_argv),
        "wait": given.wait or given.follow,
    }
    return LaunchOptions(**values)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists the options, those of the trainer go behind --")


def launch_parser() -> argparse.ArgumentParser:
    """All options but those of the trainer behind ``--``."""
    parser = _Parser(
        description="Train on a SLURM cluster. Everything behind -- goes to the trainer (unimmad train --help).",
        usage="%(prog)s [options] [-- trainer's options]",
        allow_abbrev=False,
    )
    _add_size(parser.add_argument_group("size"))
    _add_placement(parser.add_argument_group("placement"))
    _add_environment(parser.add_argument_group("environment"))
    _add_job(parser.add_argument_group("job"))
    return parser


def _add_size(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--nodes", type=_whole_from(1), default=1, metavar="N", help="of the job (default: 1)")
    group.add_argument("--gpus-per-node", type=_whole_from(0), metavar="N", help="default: the partition's, by sinfo")
    group.add_argument("--tasks-per-node", type=_whole_from(1), metavar="N", help="ranks; default: one a GPU, else 1")
    group.add_argument(
        "--cpus-per-task", type=_whole_from(1), metavar="N", help="cores of each rank; default: as SLURM has it"
    )
    group.add_argument("--mem-gb", type=float, metavar="GB", help="memory of each node")
    group.add_argument("--timeout-min", type=_whole_from(1), metavar="MIN", help="time limit; then it is requeued")


def _add_placement(group: argparse._ArgumentGroup) -> None:
    names = ("partition", "account", "qos", "constraint", "exclude", "nodelist", "reservation", "gres")
    for name in names:
        group.add_argument(f"--{name}", help=f"sbatch --{name}")
    for name in ("name", "comment", "dependency", "mail-user"):
        sent = "job-name" if name == "name" else name
        when = "; when mail is sent: --slurm-arg mail-type=END,FAIL" if name == "mail-user" else ""
        group.add_argument(f"--{name}", help=f"sbatch --{sent}{when}")


def _add_environment(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--setup", action="append", default=[], metavar="LINE", help="shell line before training starts; repeatable"
    )
    group.add_argument("--srun-arg", action="append", default=[], metavar="WORD", help="passed to srun; repeatable")
    group.add_argument(
        "--slurm-arg", action="append", default=[], metavar="KEY=VALUE", help="sbatch --KEY=VALUE; repeatable"
    )
    group.add_argument(
        "--site", type=Path, default=SITE_FILE, metavar="FILE", help="defaults of the site (default: %(default)s)"
    )


def _add_job(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--output-dir", type=Path, help="shared by all nodes; default: the trainer's, runs/RECIPE")
    group.add_argument(
        "--max-requeues", type=_whole_from(0), default=10, metavar="N", help="restarts of one job at most (10)"
    )
    group.add_argument(
        "--signal-delay-s", type=_whole_from(1), default=120, metavar="S", help="warning before the time limit (120)"
    )
    group.add_argument(
        "--cluster",
        choices=["auto", "slurm", "local", "debug"],
        default="auto",
        help="debug: one rank, in this process; auto: slurm where there is one, else local (default: auto)",
    )
    group.add_argument("--dry-run", action="store_true", help="print the batch script, submit nothing")
    group.add_argument("--wait", action="store_true", help="return when the job has ended, with its verdict")
    group.add_argument("--follow", action="store_true", help="--wait, and show rank 0's log meanwhile")
    group.add_argument(
        "--sweep", action="append", default=[], metavar="KEY=V1,V2,...", help="a job for each value; repeatable"
    )


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    if TRAINER_MARK not in argv:
        return list(argv), []
    place = list(argv).index(TRAINER_MARK)
    return list(argv[:place]), list(argv[place + 1 :])


def _whole_from(least: int) -> Any:
    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
        return int(text)

    return convert


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip("-"):
        raise ValueError(f"--slurm-arg {text}: write it as KEY=VALUE, for example exclusive=user")
    return key.strip("-"), value


def _site_words(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """The site's defaults as words, so that they pass the same checks; words that follow override them."""
    if path == SITE_FILE and not path.exists():
        return []
    try:
        values = parse_yaml(read_limited(path, MAX_YAML_BYTES), str(path)) or {}
    except OSError as error:
        raise ValueError(f"--site {path} can't be read: {error.strerror}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold lines such as partition: gpu")
    known = sorted(f"--{name.replace('_', '-')}" for name in vars(parser.parse_args([])))
    return [word for key, value in values.items() for word in _words_of(path, str(key), value, known)]


def _words_of(path: Path, key: str, value: Any, known: Sequence[str]) -> list[str]:
    option = f"--{key.replace('_', '-')}"
    if option not in known or option == "--site":
        nearest = difflib.get_close_matches(option, known, n=1)
        hint = f"; did you mean {nearest[0].removeprefix('--')}?" if nearest else ""
        raise ValueError(f"{path}: unknown key {key}{hint}")
    if isinstance(value, bool):
        return [option] if value else []
    return [f"{option}={item}" for item in (value if isinstance(value, list) else [value])]
