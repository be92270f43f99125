"""The command ``unimmad compare``: several methods trained and scored on the same data, and one table of all."""

from __future__ import annotations

import argparse
import math
import re
import shlex
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import compress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from unimmad.checkpoint.folder import CheckpointFolder
from unimmad.cli.console import run_command
from unimmad.cli.signals import ending_by, interrupts
from unimmad.comparing.cells import SHARED, Cell, Override, make_cells
from unimmad.comparing.disputed import Disputed, class_limits, disputed_figure, most_disputed, pictures_of
from unimmad.comparing.found import Done, data_of, found_cells
from unimmad.comparing.page import save_comparison_page
from unimmad.comparing.results import NAME, Result, by_method, check_apart, read_result
from unimmad.comparing.running import CellError, Running, finished, kept_reason, run_cell
from unimmad.comparing.tables import Compared, Failed, write_tables
from unimmad.config import DEFAULT_RECIPE, load_recipe
from unimmad.data.location import RemoteFolder, parse_data_folder
from unimmad.data.location import shown as shown_url
from unimmad.data.synthetic.default_set import ensure_synthetic_shards
from unimmad.evaluation.scoring import check_device, named_device
from unimmad.methods.registry import METHODS, Registry, settings_of
from unimmad.ranks.launcher import program
from unimmad.report.figures import save_figure
from unimmad.report.html_page import Picture
from unimmad.report.published import published_rows
from unimmad.report.report import PublishedRow
from unimmad.report.tables import IMAGE_SCORES

DESCRIPTION = """Train and score several methods on the same shards, one after the other, and write one table of all.

    %(prog)s --methods unimmad,rd,memory_bank --recipe tiny
    %(prog)s --methods unimmad,dinomaly --seeds 0,1,2 --data data/mine --recipe real --minutes 15
    %(prog)s --methods unimmad,mine.yaml --set unimmad:training.learning_rate=1e-3
    %(prog)s --recipe quick --methods quick,plain=quick --set plain:training.drawn_share=0
    %(prog)s --methods unimmad,rd --slurm -- --partition gpu --gpus-per-node 1

Each method has its own recipe; image size, data, length and batch come from --recipe. Whatever ends it, the same
command goes on where it was.
"""
DEFAULT_METHODS = "memory_bank,unimmad_search"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""SLURM's SIGUSR2 comes before a job is preempted."""
LAUNCHER_MARK = "--"


def compare_parser() -> argparse.ArgumentParser:
    """All options but those of the launcher behind ``--``."""
    parser = argparse.ArgumentParser(
        prog=program(), description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(METHODS)
    parser.add_argument(
        "--methods",
        metavar="METHOD,LABEL=METHOD",
        help=f"of {names}, recipe names and files, each with a label of its own where it is given one "
        f"(default: {DEFAULT_METHODS}; with --table what is there)",
    )
    parser.add_argument("--seeds", default="0", help="of each method, such as 0,1,2 (default: %(default)s)")
    parser.add_argument(
        "--recipe", default=DEFAULT_RECIPE, help="what is shared, by a recipe's name or file (default: %(default)s)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="[LABEL:]KEY=VALUE",
        help="override one setting, of all methods or of one; repeatable",
    )
    parser.add_argument("--data", nargs="+", default=[], metavar="DIR|URL", help="shard folders; default: synthetic")
    parser.add_argument("--minutes", type=float, help="of training for every method, in place of the recipe's length")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/comparison"), help="default: %(default)s")
    parser.add_argument(
        "--results", type=Path, action="append", default=[], metavar="DIR", help="put results of elsewhere beside ours"
    )
    parser.add_argument("--published", action="store_true", help="put published rows beside ours")
    parser.add_argument("--launcher", default="", help="words that start a training: 'torchrun --nproc-per-node 4'")
    parser.add_argument("--device", help="to score on, such as cuda:1; default: the GPU where there is one")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="of scoring (default: as unimmad evaluate)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--only", metavar="LABEL/SEED", help="run this cell alone, and write no table")
    instead.add_argument(
        "--table", action="store_true", help="run nothing: write the table of what is finished in --output-dir"
    )
    instead.add_argument(
        "--slurm", action="store_true", help="submit the cells as a job array; options of unimmad launch follow --"
    )
    return parser


def main(argv: Sequence[str] | None = None, methods: Registry = METHODS) -> int:
    """0, 1 where a cell failed, 2 where something given is wrong, 128 and the signal's number where one came."""
    words = sys.argv[1:] if argv is None else list(argv)
    ours = words[: words.index(LAUNCHER_MARK)] if LAUNCHER_MARK in words else words
    given = compare_parser().parse_args(ours)

    def command() -> int:
        if given.slurm:
            return _submit(given, ours, words[len(ours) + 1 :], methods)
        if len(words) > len(ours):
            raise ValueError(f"options of unimmad launch follow {LAUNCHER_MARK} with --slurm alone")
        return _compare(given, methods)

    with ending_by({**dict.fromkeys(STOP_SIGNALS, _stop), **interrupts()}):
        return run_command(program(), command, if_interrupted="; the same command goes on where it was", sigterm=False)


def _stop(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _submit(given: argparse.Namespace, ours: Sequence[str], of_launcher: Sequence[str], methods: Registry) -> int:
    from unimmad.launching.cells import submit_cells

    cells, running = _cells_and_running(given, methods)
    open_cells = [cell for cell in cells if finished(cell, running) is None]
    _results_of_elsewhere(given.results, _places(cells))
    if not open_cells:
        raise ValueError(f"all cells are finished; --table in place of --slurm writes the table to {given.output_dir}")
    submit_cells([_name(cell) for cell in open_cells], ours, of_launcher, given.output_dir)
    return 0


def _name(cell: Cell) -> str:
    """For ``--only``."""
    return f"{cell.method}/{cell.seed}"


def _cells_and_running(given: argparse.Namespace, methods: Registry) -> tuple[list[Cell], Running]:
    base = load_recipe(given.recipe, (), settings_of(methods))
    data = tuple(parse_data_folder(text) for text in given.data) or (ensure_synthetic_shards(),)
    names = [word.strip() for word in (given.methods or DEFAULT_METHODS).split(",") if word.strip()]
    overrides = [Override.parse(text) for text in given.overrides]
    cells = make_cells(names, _seeds(given.seeds), base, overrides, given.output_dir, methods)
    if given.minutes is not None and not 0 < given.minutes < math.inf:
        raise ValueError(f"--minutes {given.minutes:g} must be a number above 0")
    launcher = _words(given.launcher)
    return cells, Running(data, launcher, given.device, given.precision, given.minutes, methods)


def _words(launcher: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(launcher))
    except ValueError as error:
        raise ValueError(f"--launcher {launcher}: {error}") from None


def _seeds(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"\d{1,9}", word, re.ASCII) for word in words):
        raise ValueError(f"--seeds {text}: give whole numbers, such as 0,1,2")
    return [int(word) for word in words]


def _compare(given: argparse.Namespace, methods: Registry) -> int:
    if given.table and given.methods is None:
        return _table_of_what_is_there(given, methods)
    cells, running = _cells_and_running(given, methods)
    if not given.table:
        check_device(given.device)
    if given.only is not None:
        chosen = [cell for cell in cells if _name(cell) == given.only]
        if not chosen:
            raise ValueError(f"--only {given.only}: the cells are {', '.join(map(_name, cells))}")
        return int(bool(_run_all(chosen, running, table_only=False)[1]))
    # Before hours of training, whatever would stop the table behind them.
    is_finished = [finished(cell, running) is not None for cell in cells]
    of_ours = list(compress(cells, is_finished)) if given.table else cells
    others = _results_of_elsewhere(given.results, _places(of_ours))
    published = _published(given, running.shards.datasets)
    done, failed = _run_all(cells, running, given.table)
    found = by_method([*(one.result for one in done), *others], list(dict.fromkeys(cell.method for cell in cells)))
    if not found:
        reasons = "; ".join(f"{one.name}: {one.reason}" for one in failed)
        print(f"{program()}: no cell is finished: {reasons}", file=sys.stderr)
        return 1
    header = _header(done, running) | _shared(running)
    _report(Compared(tuple(found), tuple(failed), published), given.output_dir, done, running, header)
    return int(bool(failed) and not given.table)


def _table_of_what_is_there(given: argparse.Namespace, methods: Registry) -> int:
    """Results stand for themselves; data are needed for pictures alone."""
    done, failed = found_cells(given.output_dir)
    data = tuple(parse_data_folder(text) for text in given.data) or data_of(done)
    running = Running(data, (), given.device, given.precision, None, methods)
    ours = [(one.result.method, one.result.seed, one.folder / NAME) for one in done]
    others = _results_of_elsewhere(given.results, ours)
    found = Compared(tuple(by_method([*(one.result for one in done), *others], [])))
    compared = replace(found, failed=tuple(failed), published=_published(given, found.datasets))
    _report(compared, given.output_dir, done, running, _header(done, running))
    return 0


def _places(cells: Sequence[Cell]) -> list[tuple[str, int, Path]]:
    return [(cell.method, cell.seed, cell.folder / NAME) for cell in cells]


def _results_of_elsewhere(folders: Sequence[Path], of_ours: Sequence[tuple[str, int, Path]]) -> list[Result]:
    """
    Args:
        folders: where to look; what is ``of_ours`` is passed over.
        of_ours: method, seed and file of each result that the table has anyway.

    Raises:
        ValueError: a folder holds none, one can't be read, or is of a method and seed as another or as one of ours.
    """
    ours = {one[2].resolve(): one for one in of_ours}
    found: dict[Path, tuple[Path, Result]] = {}
    for folder in folders:
        paths = sorted(folder.rglob(NAME))
        if not paths:
            raise ValueError(f"--results {folder}: there is no {NAME} in it")
        found |= {path.resolve(): (path, read_result(path)[0]) for path in paths if path.resolve() not in ours}
    check_apart([*ours.values(), *((result.method, result.seed, path) for path, result in found.values())])
    return [result for _, result in found.values()]


def _published(given: argparse.Namespace, datasets: Iterable[str]) -> tuple[PublishedRow, ...]:
    return published_rows(list(datasets)) if given.published else ()


def _run_all(cells: Sequence[Cell], running: Running, table_only: bool) -> tuple[list[Done], list[Failed]]:
    """Those with a result, and the others; a cell that fails leaves the others alone."""
    done: list[Done] = []
    failed: list[Failed] = []
    for number, cell in enumerate(cells, start=1):
        result = finished(cell, running)
        reason = kept_reason(cell.folder)
        if result is None and not table_only:
            print(f"== {cell.name} ({number} of {len(cells)})", file=sys.stderr, flush=True)
            try:
                result = run_cell(cell, running)
            except CellError as error:
                reason = str(error)
                print(f"{program()}: {cell.name}: {reason}", file=sys.stderr, flush=True)
        if result is not None:
            done.append(Done(cell.folder, result))
        else:
            failed.append(Failed(cell.name, reason))
    return done, failed


def _report(
    compared: Compared, output: Path, done: Sequence[Done], running: Running, header: Mapping[str, str]
) -> None:
    tables = write_tables(compared, output)
    page = save_comparison_page(compared, output, header, _disputed_pictures(done, running, output), tables)
    print(compared.metric_table(means_only=True).to_text())
    print(compared.cost_table().to_text())
    for table in tables:
        print(f"table    {table}")
    print(f"page     {page}")


def _header(done: Sequence[Done], running: Running) -> dict[str, str]:
    """What they were made of, as far as it is known."""
    sizes = dict.fromkeys(one.result.report.header.get("image size", "") for one in done)
    facts = {
        "data": ", ".join(shown_url(one.url) if isinstance(one, RemoteFolder) else str(one) for one in running.data),
        "image size": ", ".join(filter(None, sizes)),
    }
    return {name: fact for name, fact in facts.items() if fact}


def _shared(running: Running) -> dict[str, str]:
    """What holds for all methods."""
    keys = [f"{section}.{key}" for section, of_section in SHARED.items() for key in of_section]
    return {
        "training": f"{running.minutes:g} minutes each" if running.minutes else "as long as its recipe says",
        "the same for all": f"{', '.join(keys)}, data, where --set says nothing else of one method",
    }


def _disputed_pictures(done: Sequence[Done], running: Running, output: Path) -> list[Picture]:
    """Of the first seed of each method whose run and scores are still there."""
    first: dict[str, Path] = {}
    for one in done:
        if (one.folder / "evaluation" / IMAGE_SCORES).is_file() and CheckpointFolder(one.folder / "run").newest():
            first.setdefault(one.result.method, one.folder)
    if len(first) < 2:
        return []
    samples = most_disputed({method: folder / "evaluation" for method, folder in first.items()})
    device = named_device(running.device)
    drawn = {
        method: pictures_of(folder / "run", running.shards, samples, device, running.precision, running.methods)
        for method, folder in first.items()
    }
    limits = {method: class_limits(pictures.values()) for method, pictures in drawn.items()}
    written = []
    for number, sample in enumerate(samples):
        path = output / "disputed" / f"{number + 1:02d}.png"
        of_sample = {method: pictures[sample.name] for method, pictures in drawn.items() if sample.name in pictures}
        if len(of_sample) == len(drawn):
            save_figure(disputed_figure(sample, of_sample, limits), path)
            written.append(Picture(path, _caption(sample)))
    return written


def _caption(sample: Disputed) -> str:
    what = "normal" if sample.defect == "good" else f"anomalous ({sample.defect})"
    return f"{sample.name[0]}, {what}: above each map, the share of its class's samples that the method scores lower."
