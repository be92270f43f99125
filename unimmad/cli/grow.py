"""The command ``unimmad grow``: a training that begins with a checkpoint; gates and leaders alone learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unimmad.cli.train import train_on_ranks
from unimmad.ranks.launcher import program

if TYPE_CHECKING:
    from unimmad.training.arguments import TrainArguments


def main() -> int:
    """Grow as the command line says; a signal lets the step end, saves and stops."""

    def parse() -> TrainArguments:
        from unimmad.training.grow_arguments import parse_grow_arguments

        return parse_grow_arguments(prog=program())

    return train_on_ranks(parse)
