"""Measure parts of UniMMAD on this machine and print a table.

python tools/benchmark.py data         what reading training data costs, against decoding alone and a plain Dataset
python tools/benchmark.py scaling      what a large cluster's nodes would read: shards, bytes a second, start-up
python tools/benchmark.py metrics      exact metrics against scikit-learn and a plain AUPRO: CPU time, memory, growth
python tools/benchmark.py model --recipe demo --precision fp32 bf16      what scoring costs
python tools/benchmark.py model --against reference   speed and memory beside the authors' way of computing
python tools/benchmark.py model --growth              C-MoE's time over tokens, leaders and banks
python tools/benchmark.py model --composing           one kernel a token, or its parts one after the other
python tools/benchmark.py model --profile             the longest kernels of evaluation and of a training step
python tools/benchmark.py fit          the largest training batch in 24 GB and 80 GB
python tools/benchmark.py tiles        host memory of scoring one image by tiles, over its size
python tools/benchmark.py serving --checkpoint RUN IMAGES/   unimmad serve under load, beside the Detector
python tools/benchmark.py checkpoint   seconds to save, verify and resume a training run
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from unimmad.cli.console import quiet_if_unread
from unimmad.cpu_features import tune_cpu

SUBCOMMANDS = ("data", "scaling", "metrics", "model", "fit", "tiles", "serving", "checkpoint")
"""Modules of ``benchmarks``."""


def main() -> int:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # measurements are not part of the package
    tune_cpu()
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in SUBCOMMANDS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = parser.add_subparsers(dest="subcommand", required=True)
    for name, module in modules.items():
        module.add_arguments(subparsers.add_parser(name, help=module.HELP, description=module.__doc__))
    arguments = parser.parse_args()
    try:
        print(modules[arguments.subcommand].run(arguments))
    except ValueError as error:
        print(f"benchmark.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(quiet_if_unread(main))
