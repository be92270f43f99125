"""Trains and scores one cell by the commands that a user would type, each in a process of its own.

Whatever ends a comparison, the same command goes on: a finished cell has its result.json, a training continues from its
checkpoint, an evaluation behind its last finished class.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml
from pydantic import TypeAdapter
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unimmad.checkpoint.folder import CheckpointFolder, find_checkpoint, read_state
from unimmad.checkpoint.state import SECONDS
from unimmad.comparing.cells import Cell
from unimmad.comparing.results import NAME, CostEntry, Result, fingerprint, read_result, write_result
from unimmad.config import Precision, Recipe, load_recipe, override_recipe
from unimmad.data.location import DataFolder
from unimmad.data.reading.shard_set import ShardSet
from unimmad.methods.registry import METHOD_SETTINGS, METHODS
from unimmad.report.comparison import read_report
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.documents import read_json
from unimmad.serialization.folder_lock import FolderLock
from unimmad.serialization.validation import validated
from unimmad.training.run_folder import TENSORBOARD

LOCK_NAME = "cell.lock"
FAILURE = "failure.txt"
PROBE_EVERY = 6
PROBE_STEPS = 18
"""Of the run that measures a step's time; the last ``PROBE_EVERY`` of them count."""
WARMUP_PART = 8
"""A warm-up takes no more of a training than one part of so many."""
WORDS_KEPT = 5
"""Last lines of a command that failed."""


class CellError(ValueError):
    """A command of a cell failed; its last words."""


@dataclass(frozen=True)
class Running:
    """How cells are run."""

    data: tuple[DataFolder, ...]
    launcher: tuple[str, ...] = ()
    """Words before ``-m unimmad train``: those of ``torchrun --nproc-per-node 4``; empty: this Python."""
    device: str | None = None
    precision: Precision | None = None
    """Of scoring."""
    minutes: float | None = None
    """Of training, for every method; None: as long as its recipe says."""

    @cached_property
    def data_digest(self) -> str:
        """Of the shards' indexes."""
        return ShardSet.open(self.data).digest()

    @property
    def data_words(self) -> list[str]:
        return ["--data", *(str(folder) for folder in self.data)]

    @property
    def scoring_words(self) -> list[str]:
        device = [] if self.device is None else ["--device", self.device]
        return device + ([] if self.precision is None else ["--precision", self.precision])


def finished(cell: Cell, running: Running) -> Result | None:
    """The cell's result, where it is of the same recipe, data and minutes."""
    path = cell.folder / NAME
    if not path.is_file():
        return None
    result, written = read_result(path)
    return result if written == cell_fingerprint(cell, running) else None


def cell_fingerprint(cell: Cell, running: Running) -> str:
    """Of what was asked for: with minutes, the steps follow from the machine."""
    asked = {"recipe": cell.recipe.model_dump(mode="json"), "minutes": running.minutes, "precision": running.precision}
    return fingerprint(asked, running.data_digest)


def run_cell(cell: Cell, running: Running) -> Result:
    """Train, evaluate and measure the cell, or what is left of that.

    Raises:
        CellError: a command failed; failure.txt keeps its last words.
        ValueError: another process is at it, or the folder can't be written to.
    """
    with FolderLock(LOCK_NAME, "comparison") as lock:
        lock.take(cell.folder)
        (cell.folder / FAILURE).unlink(missing_ok=True)
        try:
            return _run(cell, running)
        except CellError as error:
            write_text_aside(cell.folder / FAILURE, f"{error}\n")
            raise


def _run(cell: Cell, running: Running) -> Result:
    folder, asked = cell.folder, cell_fingerprint(cell, running)
    recipe = _settled_recipe(cell, running, asked)
    run, evaluation, cost = folder / "run", folder / "evaluation", folder / "cost.json"
    if not _is_trained(run):
        _train(running, folder / "recipe.yaml", run)
    words = ["--checkpoint", str(run), *running.data_words, *running.scoring_words]
    _unimmad(["evaluate", *words, "--output-dir", str(evaluation)])
    measure = [str(run), str(cost), *running.data_words, *running.scoring_words]
    _command("cost", [sys.executable, "-m", "unimmad.comparing.cost", *measure])
    state = read_state(find_checkpoint(run))
    seconds = state.get(SECONDS)
    result = Result(
        cell.method,
        cell.seed,
        read_report(evaluation),
        0 if METHODS[recipe.method].is_fitted else int(state["step"]),
        seconds / 60 if isinstance(seconds, int | float) else None,
        validated(TypeAdapter(CostEntry), read_json(cost), str(cost), "compare again"),
    )
    write_result(folder, result, asked)
    return result


def _is_trained(run: Path) -> bool:
    """Whether the run has come to its end: the trainer would begin another one."""
    newest = CheckpointFolder(run).newest()
    return newest is not None and bool(read_state(newest).get("finished"))


def _settled_recipe(cell: Cell, running: Running, asked: str) -> Recipe:
    """What is trained, as recipe.yaml has it; with minutes its steps are measured once, and kept.

    Raises:
        ValueError: the folder is of another recipe, other data or minutes: nothing of it would fit.
    """
    path, mark = cell.folder / "recipe.yaml", cell.folder / "asked.txt"
    if mark.is_file():
        if mark.read_text(encoding="utf-8", errors="replace").strip() != asked:
            raise ValueError(
                f"{cell.folder} is of another recipe, other data or --minutes; remove it, or choose another "
                "--output-dir"
            )
        return load_recipe(str(path), methods=METHOD_SETTINGS)
    recipe = cell.recipe
    if running.minutes is not None and not METHODS[recipe.method].is_fitted:
        steps = max(1, round(60 * running.minutes / _step_seconds(cell, running)))
        recipe = override_recipe(recipe, [f"training.steps={steps}"], METHOD_SETTINGS)
    recipe = override_recipe(recipe, [f"training.warmup_steps={_warmup(recipe, running)}"], METHOD_SETTINGS)
    write_text_aside(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    write_text_aside(mark, f"{asked}\n")
    return recipe


def _warmup(recipe: Recipe, running: Running) -> int:
    """The recipe's own, but no more than a part of a training that is shorter than its authors'."""
    training = recipe.training
    samples = sum(map(len, ShardSet.open(running.data).classes("train").values()))
    steps = training.steps or training.epochs * max(1, samples // training.global_batch)
    return min(training.warmup_steps, steps // WARMUP_PART)


def _step_seconds(cell: Cell, running: Running) -> float:
    """Of the last steps of a short run of its own, without its checkpoint."""
    short = [f"training.log_every={PROBE_EVERY}", f"training.steps={PROBE_STEPS}", "training.evaluate_every=0"]
    recipe = override_recipe(cell.recipe, short, METHOD_SETTINGS)
    path, run = cell.folder / "probe.yaml", cell.folder / "probe"
    shutil.rmtree(run, ignore_errors=True)  # of a comparison that was ended meanwhile
    write_text_aside(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    _train(running, path, run)
    events = EventAccumulator(str(run / TENSORBOARD))
    events.Reload()
    seconds = float(events.Scalars("step_seconds")[-1].value)
    shutil.rmtree(run, ignore_errors=True)
    if not seconds > 0:
        raise CellError("no time could be taken of a few steps; say training.steps in place of --minutes")
    return seconds


def _train(running: Running, recipe: Path, run: Path, *more: str) -> None:
    words = ["train", "--recipe", str(recipe), *running.data_words, "--output-dir", str(run), *more]
    _unimmad(words, running.launcher)


def _unimmad(words: Sequence[str], launcher: Sequence[str] = ()) -> None:
    _command(words[0], [*(launcher or (sys.executable,)), "-m", "unimmad", *words])


def _command(name: str, words: Sequence[str]) -> None:
    """Run it, show what it says, and wait for it, also where this process is asked to stop.

    Raises:
        CellError: it failed.
    """
    said: deque[str] = deque(maxlen=WORDS_KEPT)
    with subprocess.Popen(
        words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, errors="replace"
    ) as child:
        try:
            assert child.stderr is not None
            for line in child.stderr:
                sys.stderr.write(line)
                said.append(line.strip())
            status = child.wait()
        except BaseException:
            child.terminate()  # training saves where it is
            child.wait()
            raise
    if status:
        reason = next((line for line in reversed(said) if line), "it said nothing")
        raise CellError(f"{name} ended with status {status}: {reason}")
