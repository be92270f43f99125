"""The command ``unimmad``: one word more says what to do, and the rest is that command's own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from importlib.metadata import version

from unimmad.cli.console import quiet_if_unread
from unimmad.cpu_features import SWITCH, tune_cpu

COMMANDS = {
    "shards": "make a folder of shards from datasets on disk, and verify one",
    "audit": "what is wrong or odd in a dataset, before it is trained on",
    "train": "train a model on shards; on several GPUs by deepspeed or torchrun",
    "grow": "new classes for a trained checkpoint: gates and leaders learn, old classes are kept",
    "evaluate": "a checkpoint's metrics: tables, pictures and a page",
    "compare": "several methods trained and scored on the same data, in one table",
    "calibrate": "thresholds at a false-alarm rate, from normal images set aside",
    "add-class": "a class more from 1 to 50 normal images, without training",
    "predict": "score one's own images: scores, decisions, heat maps",
    "review": "a page on this machine to call predictions normal or anomalous",
    "feedback": "what was called normal or anomalous becomes thresholds and banks",
    "monitor": "whether later images are still like those of calibration: drift, and since when",
    "serve": "score images that come over HTTP",
    "export": "a checkpoint as one ONNX or torch.export file",
    "convert": "the weights that the paper's authors released, as a checkpoint",
    "launch": "train on a SLURM cluster, or on this machine, through submitit",
}
"""Each is a module of this package with ``main()``, and its line of the help."""
SUBMITS = "launch"
"""The command whose work is done in jobs: they tune the processors of their own nodes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` (None: the command line's) names; 2 where it names none."""
    return quiet_if_unread(partial(_main, sys.argv[1:] if argv is None else list(argv)))


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_help())
        return 0
    name, *rest = argv
    if name == "--version":
        print(f"unimmad {version('unimmad')}")
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        print(f"unimmad: no command {name!r}" + (f"; did you mean {near[0]}?" if near else ""), file=sys.stderr)
        print("unimmad --help lists them", file=sys.stderr)
        return 2
    sys.argv = [f"unimmad {name}", *rest]
    return run(name)


def run(name: str) -> int:
    """Run the command ``name`` by ``sys.argv``, whose first word is what its messages begin with.

    ``unimmad NAME``, tools/*.py and unimmad/train.py all come through here, before NumPy and PyTorch are imported.
    """
    return quiet_if_unread(partial(_run, name))


def _run(name: str) -> int:
    if name != SUBMITS:
        tune_cpu()
    return int(import_module(f"unimmad.cli.{name.replace('-', '_')}").main())


evaluate = partial(run, "evaluate")
"""The command ``unimmad-evaluate``."""
predict = partial(run, "predict")
"""The command ``unimmad-predict``."""


def _help() -> str:
    widest = max(map(len, COMMANDS))
    lines = [f"  {name:{widest}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            *("usage: unimmad COMMAND ...", "", *lines, ""),
            "unimmad COMMAND --help says its options.",
            f"Commands set variables for NumPy and OpenMP on CPUs (docs/speed.md) unless {SWITCH}=0.",
        ]
    )
