"""Turn the weights that UniMMAD's authors released into a checkpoint of this package.

    unimmad convert RELEASED_DIR
    unimmad convert RELEASED_DIR --output-dir runs/released --set model.backbone_weights=FILE

RELEASED_DIR holds model.safetensors (encoder and compression), model_1.safetensors (input embedding) and
model_2.safetensors (C-MoE). The frozen teacher is not among them: it is the backbone with the weights that
model.backbone_weights names, ImageNet's by default. The checkpoint serves ``unimmad evaluate
--checkpoint`` and ``unimmad train --init-from``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from unimmad.checkpoint.conversion import Conversion, convert_released
from unimmad.cli.console import run_command
from unimmad.config import load_recipe


def main(arguments: Sequence[str] | None = None) -> int:
    parser = conversion_parser()
    options = parser.parse_args(arguments)
    return run_command(parser.prog, partial(_convert, options))


def conversion_parser() -> argparse.ArgumentParser:
    """All options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("released", type=Path, metavar="RELEASED_DIR", help="folder of the three released files")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs/released"), help="run folder to make (default: %(default)s)"
    )
    parser.add_argument(
        "--recipe", default="paper", help="a shipped recipe's name or a YAML file (default: %(default)s)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override one setting"
    )
    return parser


def _convert(options: argparse.Namespace) -> None:
    recipe = load_recipe(options.recipe, options.overrides)
    _print(convert_released(options.released, options.output_dir, recipe), options.output_dir)


def _print(conversion: Conversion, run: Path) -> None:
    print(f"loaded  {conversion.loaded} tensors")
    print(f"teacher weights: {conversion.backbone_weights}")
    if conversion.backbone_weights.startswith("none"):
        print("note: a random teacher is not the one trained with, and the maps mean nothing; give its weights")
    for part, count in conversion.dropped.items():
        print(f"dropped {part}: {count} tensors")
    print(f"written {conversion.checkpoint}")
    print(f"next: unimmad evaluate --checkpoint {run} --data DIR")
