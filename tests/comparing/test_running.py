"""A cell from nothing to its result, whatever ends it; the commands are replaced by small ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_results import COST, result
from torch.utils.tensorboard import SummaryWriter

from unimmad.checkpoint.folder import CheckpointFolder
from unimmad.checkpoint.state import Layout, build_state, write_index_and_state
from unimmad.comparing import running as module
from unimmad.comparing.cells import Cell
from unimmad.comparing.results import told_recipe
from unimmad.comparing.running import CellError, Running, _command, finished, run_cell
from unimmad.config import ModelSettings, Recipe, load_recipe, override_recipe
from unimmad.methods.registry import METHOD_SETTINGS
from unimmad.report.tables import write_tables
from unimmad.serialization.folder_lock import FolderLock
from unimmad.training.run_folder import LOCK_NAME as TRAINING_LOCK
from unimmad.training.run_folder import TENSORBOARD

RUNNING = Running(data=())
STEP_SECONDS = 0.5


def write_checkpoint(run: Path, recipe: Recipe, step: int, finished: bool) -> None:
    """One without tensors."""
    folder = CheckpointFolder(run)
    partial = folder.begin(step)
    about = {"backbone_weights": "none", "data": [], "layout": Layout(), "seconds": step * STEP_SECONDS}
    write_index_and_state(partial, build_state(recipe, step=step, finished=finished, **about), {})
    folder.commit(partial, step, keep=9)


class LaterSettings(ModelSettings):
    added: int = 3


@dataclass
class Commands:
    """Does what the commands leave behind; ``stop`` is raised once, in the middle of one of them."""

    stop: dict[str, BaseException] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    words: dict[str, Sequence[str]] = field(default_factory=dict)

    def __call__(self, name: str, words: Sequence[str]) -> None:
        self.names.append(name)
        self.words[name] = words
        after = {word: words[place + 1] for place, word in enumerate(words[:-1])}
        if name == "train":
            self._train(after)
        elif name == "evaluate":
            self._stop(name)
            write_tables(result("", {"solids/nut": 0.75}).report, Path(after["--output-dir"]))
        else:
            self._stop(name)
            place = list(words).index("unimmad.comparing.cost")
            Path(words[place + 2]).write_text(COST.model_dump_json())

    def _train(self, after: dict[str, str]) -> None:
        self._stop("start")
        recipe = load_recipe(after["--recipe"], methods=METHOD_SETTINGS)
        run, every = Path(after["--output-dir"]), recipe.training.checkpoint_every
        with SummaryWriter(str(run / TENSORBOARD)) as log:
            log.add_scalar("step_seconds", STEP_SECONDS, 1)
        steps = recipe.training.steps
        begun = max((int(path.name[-8:]) for path in CheckpointFolder(run).steps()), default=0)
        for step in range(begun + every, steps, every):
            write_checkpoint(run, recipe, step, finished=False)
            self._stop("train")
        write_checkpoint(run, recipe, steps, finished=True)

    def _stop(self, name: str) -> None:
        if name in self.stop:
            raise self.stop.pop(name)


@pytest.fixture
def commands(monkeypatch) -> Commands:
    made = Commands()
    monkeypatch.setattr(module, "_command", made)
    monkeypatch.setattr(Running, "data_digest", "of the data")
    monkeypatch.setattr(Running, "shards", SimpleNamespace(classes=lambda _: {"solids/nut": range(40)}))
    return made


@pytest.fixture
def cell(tmp_path) -> Cell:
    recipe = load_recipe("tiny", ["training.steps=12", "training.checkpoint_every=4"])
    return Cell("unimmad", 0, recipe, tmp_path / "out" / "unimmad" / "seed_0")


def with_settings(cell: Cell, *overrides: str) -> Cell:
    return replace(cell, recipe=override_recipe(cell.recipe, overrides))


def test_a_cell_is_trained_evaluated_and_measured_once(commands, cell):
    assert finished(cell, RUNNING) is None
    made = run_cell(cell, RUNNING)
    assert commands.names == ["train", "evaluate", "cost"]
    assert (made.method, made.seed, made.steps, made.minutes, made.cost) == ("unimmad", 0, 12, 6.0 / 60, COST)
    assert made.report.classes[0].metrics["AUPRO"] == 0.75
    assert finished(cell, RUNNING) == made
    assert load_recipe(str(cell.folder / "recipe.yaml")) == cell.recipe
    assert made.recipe == told_recipe(cell.recipe)


def test_commands_get_what_was_asked_for(commands, cell):
    run_cell(cell, Running((Path("a"), Path("b")), ("torchrun", "-x"), "cpu", "bf16"))
    assert commands.words["train"][:4] == ["torchrun", "-x", "-m", "unimmad"]
    assert commands.words["evaluate"][:3] == [sys.executable, "-m", "unimmad"]
    for name in ("evaluate", "cost"):
        assert " ".join(commands.words[name]).count("--data a b --device cpu --precision bf16") == 1


@pytest.mark.parametrize("name", ["train", "evaluate", "cost"])
@pytest.mark.parametrize("how", [KeyboardInterrupt(), SystemExit(143)])
def test_whatever_stops_it_the_next_start_goes_on(commands, cell, name, how):
    commands.stop = {name: how}
    with pytest.raises(type(how)):
        run_cell(cell, RUNNING)
    assert finished(cell, RUNNING) is None
    assert not (cell.folder / "failure.txt").exists()
    commands.names.clear()
    again = run_cell(cell, RUNNING)
    assert commands.names == (["train"] if name == "train" else []) + ["evaluate", "cost"]
    assert [path.name for path in cell.folder.glob("run*")] == ["run"], "what is trained is not trained again"
    assert again.steps == 12


def test_a_failed_command_is_kept_with_its_reason_until_it_works(commands, cell):
    commands.stop = {"evaluate": CellError("evaluate ended with status 2: no such\nthing")}
    with pytest.raises(CellError, match="evaluate ended with status 2"):
        run_cell(cell, RUNNING)
    assert (cell.folder / "failure.txt").read_text() == "evaluate ended with status 2: no such\\nthing\n"
    run_cell(cell, RUNNING)
    assert not (cell.folder / "failure.txt").exists()


def test_what_a_command_left_half_is_the_cells_failure_alone(commands, cell, monkeypatch):
    def half(name: str, words: Sequence[str]) -> None:
        commands(name, words)
        if name == "cost":
            (cell.folder / "cost.json").write_text('{"parameters":')

    monkeypatch.setattr(module, "_command", half)
    with pytest.raises(CellError, match=r"cost\.json"):
        run_cell(cell, RUNNING)
    assert finished(cell, RUNNING) is None


def test_the_folder_of_other_settings_data_or_minutes_is_left_alone(commands, cell, monkeypatch):
    run_cell(cell, RUNNING)
    kept = (cell.folder / "result.json").read_bytes()
    said = "seed_0 holds what other settings, data or --minutes came to; choose another --output-dir"
    with pytest.raises(ValueError, match=said):
        finished(with_settings(cell, "training.learning_rate=0.5"), RUNNING)
    with pytest.raises(ValueError, match=said):
        finished(cell, Running(data=(), minutes=3))
    monkeypatch.setattr(Running, "data_digest", "of other data")
    with pytest.raises(ValueError, match=said):
        finished(cell, RUNNING)
    assert (cell.folder / "result.json").read_bytes() == kept


def test_a_setting_that_a_later_version_adds_leaves_results_valid(commands, cell):
    run_cell(cell, RUNNING)
    values = cell.recipe.model_dump(mode="json")
    later = replace(cell, recipe=Recipe[LaterSettings].model_validate(values))
    assert finished(later, RUNNING) is not None
    other = replace(
        cell, recipe=Recipe[LaterSettings].model_validate({**values, "model": {**values["model"], "added": 4}})
    )
    with pytest.raises(ValueError, match="holds what other settings"):
        finished(other, RUNNING)


def test_so_is_one_that_is_half_trained(commands, cell):
    commands.stop = {"train": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, RUNNING)
    with pytest.raises(ValueError, match="holds what other settings"):
        finished(with_settings(cell, "training.learning_rate=0.5"), RUNNING)


def test_settings_that_came_to_nothing_may_be_mended(commands, cell):
    commands.stop = {"start": CellError("it can't work")}
    with pytest.raises(CellError):
        run_cell(cell, RUNNING)
    mended = with_settings(cell, "training.learning_rate=0.5")
    assert finished(mended, RUNNING) is None
    run_cell(mended, RUNNING)
    assert load_recipe(str(cell.folder / "recipe.yaml")).training.learning_rate == 0.5


def test_another_process_at_the_cell(commands, cell):
    with FolderLock(module.LOCK_NAME, "comparison") as lock:
        lock.take(cell.folder)
        with pytest.raises(CellError, match=rf"in use: cell\.lock is held by process {os.getpid()} .* comparison"):
            run_cell(cell, RUNNING)
    assert commands.names == []
    assert not (cell.folder / "failure.txt").exists(), "that process writes it"


def test_minutes_become_steps_by_the_time_that_a_step_takes(commands, cell):
    timed = Running(data=(), minutes=2)
    made = run_cell(cell, timed)
    assert made.steps == 2 * 60 / STEP_SECONDS
    assert commands.names == ["train", "train", "evaluate", "cost"]
    assert not (cell.folder / "probe").exists(), "its checkpoints are of no more use"
    assert finished(cell, timed) == made


def test_minutes_are_measured_once(commands, cell, monkeypatch):
    commands.stop = {"evaluate": KeyboardInterrupt()}
    timed = Running(data=(), minutes=0.1)
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, timed)
    monkeypatch.setattr(sys.modules[__name__], "STEP_SECONDS", 50.0)
    assert run_cell(cell, timed).steps == 12
    assert commands.names.count("train") == 2


def test_steps_that_take_no_measurable_time(commands, cell, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "STEP_SECONDS", 0.0)
    with pytest.raises(CellError, match=r"no time could be taken of a few steps; set training\.steps"):
        run_cell(cell, Running(data=(), minutes=0.01))


@pytest.mark.parametrize(
    ("settings", "minutes", "warmup"),
    [
        (["training.warmup_steps=46", "training.steps=80"], None, 10),
        (["training.warmup_steps=46", "training.steps=0", "training.epochs=16"], None, 20),
        (["training.warmup_steps=46"], 2, 30),
        (["training.warmup_steps=3", "training.steps=80"], None, 3),
    ],
)
def test_a_warm_up_takes_a_part_of_a_short_training_at_most(commands, cell, settings, minutes, warmup):
    run_cell(with_settings(cell, *settings), Running(data=(), minutes=minutes))
    assert load_recipe(str(cell.folder / "recipe.yaml")).training.warmup_steps == warmup


def test_what_is_fitted_is_not_measured_by_steps(commands, tmp_path):
    recipe = load_recipe("memory_bank", ["training.steps=1"], METHOD_SETTINGS)
    made = run_cell(Cell("memory_bank", 0, recipe, tmp_path / "bank"), Running(data=(), minutes=2))
    assert made.steps == 0
    assert commands.names == ["train", "evaluate", "cost"]


def test_a_training_that_outlived_its_comparison_is_waited_for(commands, cell, monkeypatch, capsys):
    (cell.folder / "run").mkdir(parents=True)
    waited = []
    with FolderLock(TRAINING_LOCK, "training") as lock:
        lock.take(cell.folder / "run")

        def sleep(_: float) -> None:
            waited.append(list(commands.names))
            lock.__exit__()

        monkeypatch.setattr(module.time, "sleep", sleep)
        run_cell(cell, RUNNING)
    assert waited == [[]], "before anything is run"
    assert f"still trained by process {os.getpid()}" in capsys.readouterr().err


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import sys; sys.exit('unimmad train: no such data')", "it ended with status 1: unimmad train: no such data$"),
        ("import sys; sys.exit('unimmad train: the cause\\n=====\\nFAILED')", "status 1: unimmad train: the cause$"),
        ("raise SystemExit(3)", "it ended with status 3: it said nothing$"),
        ("raise OSError('gone')", "it ended with status 1: OSError: gone$"),
        ("import os; os.kill(os.getpid(), 9)", "it was ended by SIGKILL, perhaps for want of memory: it said nothing$"),
        ("import os; os.kill(os.getpid(), 15)", "it was ended by SIGTERM: it said nothing$"),
        (r"import sys; sys.stderr.buffer.write(b'\xff\xfe'); sys.exit(1)", "it ended with status 1"),
    ],
)
def test_a_command_that_fails_says_why_in_one_line(program, said):
    with pytest.raises(CellError, match=said) as told:
        _command("it", python(program))
    assert "\n" not in str(told.value)


def test_a_command_that_is_not_there():
    with pytest.raises(CellError, match="train: no-such-launcher can't be started: No such file"):
        _command("train", ["no-such-launcher", "-m", "unimmad"])


def test_a_progress_bar_stays_one_line(capsys):
    _command("it", python(r"import sys; sys.stderr.write('\r1/2\r2/2\n')"))
    assert capsys.readouterr().err.replace(os.linesep, "\n") == "\r1/2\r2/2\n"


LASTING = (
    "import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(__import__('os').getpid())); time.sleep(60)"
)


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_command_outlives_a_comparison_that_is_killed(tmp_path, number):
    file = tmp_path / "pid"
    program = (
        "import sys; from unimmad.comparing.running import _command; "
        f"_command('it', [sys.executable, '-c', {LASTING!r}, {str(file)!r}])"
    )
    with subprocess.Popen(python(program), stderr=subprocess.DEVNULL) as parent:
        until(lambda: file.is_file() and file.read_text() != "")
        child = int(file.read_text())
        parent.send_signal(number)
        parent.wait(60)
    until(lambda: not _is_there(child))


def _is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
