"""The command ``unimmad compare``: several methods trained and scored on the same data, and one table of all."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from unimmad.comparing.cells import SHARED, Cell, Override, make_cells
from unimmad.comparing.disputed import Disputed, class_limits, disputed_figure, most_disputed, pictures_of
from unimmad.comparing.page import save_comparison_page
from unimmad.comparing.results import NAME, Result, by_method, read_result
from unimmad.comparing.running import FAILURE, Running, finished, run_cell
from unimmad.comparing.tables import Compared, Failed, write_tables
from unimmad.config import DEFAULT_RECIPE, load_recipe
from unimmad.data.location import parse_data_folder
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.synthetic.default_set import ensure_synthetic_shards
from unimmad.evaluation.scoring import named_device
from unimmad.methods.registry import METHOD_SETTINGS, METHODS
from unimmad.ranks.launcher import program
from unimmad.report.figures import save_figure
from unimmad.report.html_page import Picture
from unimmad.report.published import published_rows

DESCRIPTION = """Train and score several methods on the same shards, one after the other, and write one table of all.

    %(prog)s --methods unimmad,rd,memory_bank --recipe tiny
    %(prog)s --methods unimmad,dinomaly --seeds 0,1,2 --data data/mine --recipe real --minutes 15
    %(prog)s --methods unimmad,mine.yaml --set rd:training.learning_rate=1e-3
    %(prog)s --methods unimmad,rd --slurm -- --partition gpu --gpus-per-node 1

Each method has its own recipe; image size, data, length and batch come from --recipe. Whatever ends it, the same
command goes on where it was.
"""
SIGTERM_STATUS = 128 + signal.SIGTERM
LAUNCHER_MARK = "--"


def compare_parser() -> argparse.ArgumentParser:
    """All options but those of the launcher behind ``--``."""
    parser = argparse.ArgumentParser(
        prog=program(), description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(METHODS)
    parser.add_argument(
        "--methods", default="memory_bank,unimmad", help=f"of {names}, recipe names and files (default: %(default)s)"
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
        metavar="[METHOD:]KEY=VALUE",
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
    parser.add_argument("--only", metavar="METHOD/SEED", help="run this cell alone, and write no table")
    parser.add_argument("--table", action="store_true", help="run nothing: write the table of what is finished")
    parser.add_argument(
        "--slurm", action="store_true", help="submit the cells as a job array; options of unimmad launch follow --"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """0, 1 where a cell failed, 2 where something given is wrong, 130 or 143 where it was asked to stop."""
    words = sys.argv[1:] if argv is None else list(argv)
    ours = words[: words.index(LAUNCHER_MARK)] if LAUNCHER_MARK in words else words
    given = compare_parser().parse_args(ours)
    signal.signal(signal.SIGTERM, _stop)
    try:
        if given.slurm:
            from unimmad.launching.cells import submit_cells

            cells, _ = _cells_and_running(given)
            submit_cells(
                [f"{cell.method}/{cell.seed}" for cell in cells], ours, words[len(ours) + 1 :], given.output_dir
            )
            return 0
        return _compare(given)
    except KeyboardInterrupt:
        print(f"{program()}: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except ValueError as error:
        print(f"{program()}: {error}", file=sys.stderr)
        return 2


def _stop(*_: int | FrameType | None) -> NoReturn:
    sys.exit(SIGTERM_STATUS)


def _cells_and_running(given: argparse.Namespace) -> tuple[list[Cell], Running]:
    base = load_recipe(given.recipe, (), METHOD_SETTINGS)
    data = tuple(parse_data_folder(text) for text in given.data) or (ensure_synthetic_shards(),)
    methods = [word.strip() for word in given.methods.split(",") if word.strip()]
    overrides = [Override.parse(text) for text in given.overrides]
    cells = make_cells(methods, _seeds(given.seeds), base, overrides, given.output_dir)
    if given.minutes is not None and not given.minutes > 0:
        raise ValueError(f"--minutes {given.minutes:g} must be above 0")
    running = Running(data, tuple(shlex.split(given.launcher)), given.device, given.precision, given.minutes)
    return cells, running


def _seeds(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.lstrip("-").isdecimal() for word in words):
        raise ValueError(f"--seeds {text}: give whole numbers, such as 0,1,2")
    return [int(word) for word in words]


def _compare(given: argparse.Namespace) -> int:
    cells, running = _cells_and_running(given)
    if given.only is not None:
        cells = [cell for cell in cells if f"{cell.method}/{cell.seed}" == given.only]
        if not cells:
            raise ValueError(f"--only {given.only}: there is no such cell; write it as METHOD/SEED")
    results, failed = _run_all(cells, running, given.table)
    if given.only is not None:
        return int(bool(failed))
    _report(given, cells, running, results, failed)
    return int(bool(failed) and not given.table)


def _run_all(cells: Sequence[Cell], running: Running, table_only: bool) -> tuple[list[Result], list[Failed]]:
    results, failed = [], []
    for number, cell in enumerate(cells, start=1):
        try:
            result = finished(cell, running)
            if result is None and not table_only:
                print(f"== {cell.name} ({number} of {len(cells)})", file=sys.stderr, flush=True)
                result = run_cell(cell, running)
        except ValueError as error:
            print(f"{program()}: {cell.name}: {error}", file=sys.stderr, flush=True)
            failed.append(Failed(cell.name, str(error)))
            continue
        if result is not None:
            results.append(result)
        else:
            failed.append(Failed(cell.name, _why(cell)))
    return results, failed


def _why(cell: Cell) -> str:
    note = cell.folder / FAILURE
    return note.read_text(encoding="utf-8", errors="replace").strip() if note.is_file() else "not finished yet"


def _report(
    given: argparse.Namespace,
    cells: Sequence[Cell],
    running: Running,
    results: Sequence[Result],
    failed: Sequence[Failed],
) -> None:
    others = [read_result(path)[0] for folder in given.results for path in sorted(folder.rglob(NAME))]
    methods = by_method([*results, *others], list(dict.fromkeys(cell.method for cell in cells)))
    if not methods:
        raise ValueError(f"no cell is finished: {'; '.join(f'{one.name}: {one.reason}' for one in failed)}")
    compared = Compared(tuple(methods), tuple(failed))
    if given.published:
        compared = Compared(tuple(methods), tuple(failed), published_rows(compared.datasets))
    output: Path = given.output_dir
    tables = write_tables(compared, output)
    of_results = {(result.method, result.seed) for result in results}
    done = [cell for cell in cells if (cell.method, cell.seed) in of_results]
    page = save_comparison_page(
        compared, output, _header(given.recipe, running), _disputed_pictures(done, running, output), tables
    )
    print(compared.metric_table(means_only=True).to_text())
    print(compared.cost_table().to_text())
    for table in tables:
        print(f"table    {table}")
    print(f"page     {page}")


def _header(recipe: str, running: Running) -> dict[str, str]:
    """What holds for all methods."""
    keys = [f"{section}.{key}" for section, of_section in SHARED.items() for key in of_section]
    return {
        "data": ", ".join(str(folder) for folder in running.data),
        "training": f"{running.minutes:g} minutes each" if running.minutes else f"as long as recipe {recipe} says",
        "the same for all": f"{', '.join(keys)}, data",
    }


def _disputed_pictures(cells: Sequence[Cell], running: Running, output: Path) -> list[Picture]:
    """Of the first seed of each method."""
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.method, cell)
    if len(first) < 2:
        return []
    samples = most_disputed({method: cell.folder / "evaluation" for method, cell in first.items()})
    shards, device = ShardSet.open(running.data), named_device(running.device)
    drawn = {
        method: pictures_of(cell.folder / "run", shards, samples, device, running.precision)
        for method, cell in first.items()
    }
    limits = {method: class_limits(pictures.values()) for method, pictures in drawn.items()}
    written = []
    for number, sample in enumerate(samples):
        of_methods = {method: pictures[sample.name] for method, pictures in drawn.items() if sample.name in pictures}
        if not of_methods:
            continue
        path = output / "disputed" / f"{number + 1:02d}.png"
        save_figure(disputed_figure(sample, of_methods, limits), path)
        written.append(Picture(path, _caption(sample)))
    return written


def _caption(sample: Disputed) -> str:
    what = "normal" if sample.defect == "good" else f"anomalous ({sample.defect})"
    return f"{sample.name[0]}, {what}: above each map, the share of its class's samples that the method scores lower."
