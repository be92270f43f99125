"""Trains and scores one cell by the commands that a user would type, each in a process of its own.

Whatever ends a comparison, the same command goes on: a finished cell has its result.json, a training continues from its
checkpoint, an evaluation behind its last finished class.
"""

from __future__ import annotations

import ctypes
import io
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unimmad.checkpoint.folder import CheckpointFolder, find_checkpoint, read_state
from unimmad.checkpoint.state import SECONDS
from unimmad.comparing.cells import Cell
from unimmad.comparing.results import NAME, Result, fingerprint, read_cost, read_result, told_recipe, write_result
from unimmad.config import Precision, Recipe, load_recipe, override_recipe
from unimmad.data.location import DataFolder
from unimmad.data.reading.shard_set import ShardSet
from unimmad.methods.registry import METHODS, Registry, settings_of
from unimmad.report.comparison import read_report
from unimmad.serialization.atomic_write import write_text_aside
from unimmad.serialization.folder_lock import FolderLock
from unimmad.serialization.lock_holder import find_lock
from unimmad.serialization.text import one_line
from unimmad.training.run_folder import LOCK_NAME as TRAINING_LOCK
from unimmad.training.run_folder import TENSORBOARD

LOCK_NAME = "cell.lock"
FAILURE = "failure.txt"
ASKED = "asked.txt"
PROBE_EVERY = 6
PROBE_STEPS = 18
"""Of the run that measures a step's time; the last ``PROBE_EVERY`` of them count."""
WARMUP_PART = 8
"""A warm-up takes no more of a training than one part of so many."""
WORDS_KEPT = 40
"""Last lines of a command, of which one says why it failed."""
POLL_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


class CellError(ValueError):
    """A cell came to no result; why."""


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
    methods: Registry = field(default_factory=lambda: METHODS)
    """Those of the cells among them."""

    @cached_property
    def shards(self) -> ShardSet:
        return ShardSet.open(self.data)

    @cached_property
    def data_digest(self) -> str:
        return self.shards.digest()

    @property
    def data_words(self) -> list[str]:
        return ["--data", *(str(folder) for folder in self.data)]

    @property
    def scoring_words(self) -> list[str]:
        device = [] if self.device is None else ["--device", self.device]
        return device + ([] if self.precision is None else ["--precision", self.precision])


def finished(cell: Cell, running: Running) -> Result | None:
    """The cell's result; None where it has none yet.

    Raises:
        ValueError: the folder holds what other settings, data or minutes came to, or its result can't be read.
    """
    asked, path, mark = cell_fingerprint(cell, running), cell.folder / NAME, cell.folder / ASKED
    if path.is_file():
        result, written = read_result(path)
    elif mark.is_file() and CheckpointFolder(cell.folder / "run").newest() is not None:
        result, written = None, mark.read_text(encoding="utf-8", errors="replace").strip()
    else:
        return None
    if written != asked:
        raise ValueError(
            f"{cell.folder} holds what other settings, data or --minutes came to; choose another --output-dir, "
            "or remove that folder"
        )
    return result


def kept_reason(folder: Path) -> str:
    """Why a cell's folder has no result: of what ran before, such as a job of an array."""
    note = folder / FAILURE
    return (
        one_line(note.read_text(encoding="utf-8", errors="replace").strip()) if note.is_file() else "not finished yet"
    )


def cell_fingerprint(cell: Cell, running: Running) -> str:
    """Of what was asked for: with minutes, the steps follow from the machine.

    Settings at their defaults are left out, so that results stay when a later version has more of them.
    """
    recipe = cell.recipe.model_dump(mode="json", exclude_defaults=True)
    asked = {"recipe": recipe, "minutes": running.minutes, "precision": running.precision}
    return fingerprint(asked, running.data_digest)


def run_cell(cell: Cell, running: Running) -> Result:
    """Train, evaluate and measure the cell, or what is left of that.

    Raises:
        CellError: something failed, of which failure.txt keeps the words; or another process is at it, or the folder
            can't be written to.
    """
    with FolderLock(LOCK_NAME, "comparison") as lock:
        try:
            lock.take(cell.folder)
        except ValueError as error:
            raise CellError(str(error)) from None
        failure = cell.folder / FAILURE
        failure.unlink(missing_ok=True)
        try:
            return _run(cell, running)
        except (ValueError, OSError) as error:
            reason = one_line(error)
            write_text_aside(failure, f"{reason}\n")
            raise CellError(reason) from None


def _run(cell: Cell, running: Running) -> Result:
    folder, asked = cell.folder, cell_fingerprint(cell, running)
    recipe = _settled_recipe(cell, running, asked)
    run, evaluation, cost = folder / "run", folder / "evaluation", folder / "cost.json"
    _wait_for_last_start(run)
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
        0 if running.methods[recipe.method].is_fitted else int(state["step"]),
        seconds / 60 if isinstance(seconds, int | float) else None,
        read_cost(cost),
        told_recipe(recipe),
    )
    write_result(folder, result, asked)
    return result


def _settled_recipe(cell: Cell, running: Running, asked: str) -> Recipe:
    """What is trained, as recipe.yaml has it; with minutes its steps are measured once, and kept."""
    path, mark = cell.folder / "recipe.yaml", cell.folder / ASKED
    settings = settings_of(running.methods)
    if path.is_file() and mark.is_file() and mark.read_text(encoding="utf-8", errors="replace").strip() == asked:
        return load_recipe(str(path), methods=settings)
    shutil.rmtree(cell.folder / "evaluation", ignore_errors=True)  # of other settings, that came to no checkpoint
    recipe = cell.recipe
    if running.minutes is not None and not running.methods[recipe.method].is_fitted:
        steps = max(1, round(60 * running.minutes / _step_seconds(cell, running)))
        recipe = override_recipe(recipe, [f"training.steps={steps}"], settings)
    recipe = override_recipe(recipe, [f"training.warmup_steps={_warmup(recipe, running)}"], settings)
    write_text_aside(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    write_text_aside(mark, f"{asked}\n")
    return recipe


def _step_seconds(cell: Cell, running: Running) -> float:
    """Of the last steps of a short run of its own, which is removed; checkpoints are not in it.

    Raises:
        CellError: the steps took no time that could be measured.
    """
    of_probe = (f"training.steps={PROBE_STEPS}", f"training.log_every={PROBE_EVERY}", "training.evaluate_every=0")
    recipe = override_recipe(cell.recipe, of_probe, settings_of(running.methods))
    path, run = cell.folder / "probe.yaml", cell.folder / "probe"
    _wait_for_last_start(run)
    shutil.rmtree(run, ignore_errors=True)  # of a comparison that was ended meanwhile
    write_text_aside(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
    _train(running, path, run)
    events = EventAccumulator(str(run / TENSORBOARD))
    events.Reload()
    seconds = float(events.Scalars("step_seconds")[-1].value)
    shutil.rmtree(run, ignore_errors=True)
    if not seconds > 0:
        raise CellError("no time could be taken of a few steps; set training.steps in place of --minutes")
    return seconds


def _warmup(recipe: Recipe, running: Running) -> int:
    """The recipe's own, but no more than a part of a training that is shorter than its authors'."""
    training = recipe.training
    samples = sum(map(len, running.shards.classes("train").values()))
    steps = training.steps or training.epochs * max(1, samples // training.global_batch)
    return min(training.warmup_steps, steps // WARMUP_PART)


def _wait_for_last_start(run: Path) -> None:
    """A training that outlived a comparison that was killed, such as on several ranks, saves and lets go of its run."""
    told = False
    while run.is_dir() and (found := find_lock(run / TRAINING_LOCK)) and found.is_near and not found.is_stale:
        if not told:
            print(f"{run} is still trained by {found}: waiting for its end", file=sys.stderr, flush=True)
        told = True
        time.sleep(POLL_SECONDS)


def _is_trained(run: Path) -> bool:
    newest = CheckpointFolder(run).newest()
    return newest is not None and bool(read_state(newest).get("finished"))


def _train(running: Running, recipe: Path, run: Path) -> None:
    words = ["train", "--recipe", str(recipe), *running.data_words, "--output-dir", str(run)]
    _unimmad(words, running.launcher)


def _unimmad(words: Sequence[str], launcher: Sequence[str] = ()) -> None:
    _command(words[0], [*(launcher or (sys.executable,)), "-m", "unimmad", *words])


def _command(name: str, words: Sequence[str]) -> None:
    """Run it, show what it says, and wait for it, also where this process is asked to stop.

    Raises:
        CellError: it failed.
    """
    said: deque[str] = deque(maxlen=WORDS_KEPT)
    try:
        child = subprocess.Popen(
            words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, preexec_fn=_end_with_this_process
        )
    except OSError as error:
        raise CellError(f"{name}: {words[0]} can't be started: {error.strerror}") from None
    with child:
        try:
            assert child.stderr is not None
            # Ends of lines stay as they are: a progress bar goes back to the start of its own.
            for line in io.TextIOWrapper(child.stderr, encoding="utf-8", errors="replace", newline=""):
                sys.stderr.write(line)
                said.append(line.strip())
            status = child.wait()
        except BaseException:
            child.terminate()  # training saves where it is
            child.wait()
            raise
    if status:
        raise CellError(f"{name} {_ended(status)}: {_reason(said)}")


def _end_with_this_process() -> None:
    """In a child, before its program: Linux is to end it by SIGTERM when this process is gone, however it went."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _ended(status: int) -> str:
    if status > 0:
        return f"ended with status {status}"
    out_of_memory = ", perhaps for want of memory" if -status == signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-status).name}{out_of_memory}"


def _reason(said: Sequence[str]) -> str:
    """The last line in which one of our commands speaks, else the last; launchers have words of their own below."""
    lines = [line for line in said if line]
    ours = [line for line in lines if line.startswith("unimmad ") or line.startswith("unimmad.")]
    return (ours or lines or ["it said nothing"])[-1]
