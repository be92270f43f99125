"""The command line of ``tools/check_gpu.py``: choose checks, run them, report."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from gpu.check import Outcome, Setting
from gpu.registry import CHECKS, GROUPS
from gpu.report import machine, markdown, write_report
from gpu.running import outcomes_of

from unimmad.config import load_recipe

RECIPES = {"cuda": "paper", "cpu": "tiny"}
MINUTES = 8.0


def main(argv: Sequence[str] | None = None, description: str = "") -> int:
    """0; 1 where a check failed; 2 where something given is wrong."""
    parser = _parser(description)
    options = parser.parse_args(argv)
    try:
        names, setting = _chosen(options)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    logs = options.output_dir / "logs"
    for folder in (setting.work, logs):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    on = machine(setting.device, setting.recipe)
    outcomes: list[Outcome] = []
    deadline = time.monotonic() + 60 * options.minutes
    for group in GROUPS:
        chosen = [name for name in group if name in names]
        for outcome in outcomes_of(chosen, setting, logs.resolve(), deadline):
            print(f"{outcome.status:>12}  {outcome.name}  ({outcome.seconds:.0f} s)  {outcome.why}", flush=True)
            outcomes.append(outcome)
            write_report(options.output_dir, on, outcomes)
    shutil.rmtree(setting.work, ignore_errors=True)
    print(f"\n{markdown(on, outcomes)}")
    for path in write_report(options.output_dir, on, outcomes):
        print(f"written  {path}")
    return int(any(outcome.status == "failed" for outcome in outcomes))


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(RECIPES), help="default: cuda, which must be there")
    parser.add_argument("--recipe", help="default: paper on a GPU, tiny on a CPU")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="what is not done by then is left (default: 8)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/check-gpu"), help="default: %(default)s")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="checks whose names contain one of these")
    parser.add_argument("--list", action="store_true", help="name all checks and stop")
    return parser


def _chosen(options: argparse.Namespace) -> tuple[list[str], Setting]:
    if options.list:
        print("\n".join(CHECKS))
        raise SystemExit(0)
    if options.device != "cpu" and not torch.cuda.is_available():
        raise ValueError("there is no GPU that PyTorch can use here; --device cpu tries the same checks on a CPU")
    if not options.minutes > 0:
        raise ValueError(f"--minutes {options.minutes:g} must be above 0")
    device = options.device or "cuda"
    recipe = options.recipe or RECIPES[device]
    load_recipe(recipe)
    names = [name for name in CHECKS if not options.only or any(text in name for text in options.only)]
    if not names:
        raise ValueError(f"no check is called {' or '.join(options.only)}; --list names them")
    return names, Setting(device, recipe, (options.output_dir / "work").resolve())
