"""Every option of every command, benchmark and tool says what it is."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from unimmad.cli.evaluate_arguments import calibration_parser, evaluation_parser

ROOT = Path(__file__).parents[2]
FOLDERS = ("unimmad", "benchmarks", "tools", "slurm", "tests/gpu")


def options_without_help(source: str) -> list[str]:
    """The first name of each option, or argument, that is added to a parser with no help or an empty one."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    added = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    says = {ast.unparse(call.args[0]): [word.value for word in call.keywords if word.arg == "help"] for call in added}
    return [name for name, said in says.items() if not said or ast.unparse(said[0]) in ("''", "None")]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_option_has_help(folder: str) -> None:
    """From the source: parsers that are built inside of a command are seen as well."""
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = {path.name: options_without_help(path.read_text()) for path in files}
    assert {name: options for name, options in found.items() if options} == {}


def test_an_option_without_help_is_found() -> None:
    source = "p.add_argument('--a', help='of it')\np.add_argument('--b', type=int)\ngroup.add_argument('--c', help='')"
    assert options_without_help(source) == ["'--b'", "'--c'"]


@pytest.mark.parametrize(("parser", "program"), [(evaluation_parser, "evaluate"), (calibration_parser, "calibrate")])
def test_what_examples_are_for_stands_in_one_column(
    parser: Callable[[], argparse.ArgumentParser], program: str
) -> None:
    shown = parser()
    shown.prog = f"unimmad {program}"
    examples = re.findall(r"^(    (?:unimmad|torchrun) .*\S {3,})\S", shown.format_help(), re.MULTILINE)
    assert len(examples) >= 2
    assert len(set(map(len, examples))) == 1
