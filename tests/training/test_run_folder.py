"""Which folder a run writes to, and which run it continues."""

from __future__ import annotations

import errno
import json
import logging
import re
import tempfile
from pathlib import Path

import pytest

from unimmad.checkpoint.folder import STATE_NAME, CheckpointFolder
from unimmad.config import Recipe, load_recipe
from unimmad.training.run_folder import RunFolder, check_same_recipe, choose_run_folder, make_run_folder

RECIPE = load_recipe("tiny")


@pytest.fixture
def wanted(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "tiny"


def save(run: Path, step: int, *, finished: bool = False, recipe: Recipe = RECIPE) -> Path:
    folder = CheckpointFolder(run)
    state = {"recipe": recipe.model_dump(mode="json"), "step": step, "finished": finished}
    partial = folder.begin(step)
    (partial / STATE_NAME).write_text(json.dumps(state))
    return folder.commit(partial, step, keep=5)


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_the_first_run_gets_the_folder_that_was_asked_for(wanted, resume):
    assert choose_run_folder(wanted, resume, RECIPE) == RunFolder(wanted, None)
    (wanted / "checkpoints").mkdir(parents=True)
    assert choose_run_folder(wanted, resume, RECIPE) == RunFolder(wanted, None)


def test_auto_continues_an_unfinished_run_at_its_newest_checkpoint(wanted):
    save(wanted, 2)
    newest = save(wanted, 4)
    assert choose_run_folder(wanted, "auto", RECIPE) == RunFolder(wanted, newest)


def test_auto_after_a_finished_run_opens_the_next_number_and_says_so(wanted, caplog):
    save(wanted, 4, finished=True)
    with caplog.at_level(logging.INFO):
        assert choose_run_folder(wanted, "auto", RECIPE) == RunFolder(wanted.with_name("tiny-2"), None)
    assert f"{wanted} is finished: this run goes to {wanted}-2" in caplog.text


def test_auto_works_with_the_last_of_a_numbered_series(wanted):
    save(wanted, 4, finished=True)
    for number in (2, 9):
        save(wanted.with_name(f"tiny-{number}"), 4, finished=True)
    save(wanted.with_name("tiny-large"), 4)
    unfinished = save(wanted.with_name("tiny-10"), 2)
    assert choose_run_folder(wanted, "auto", RECIPE) == RunFolder(wanted.with_name("tiny-10"), unfinished)
    save(wanted.with_name("tiny-10"), 4, finished=True)
    assert choose_run_folder(wanted, "auto", RECIPE) == RunFolder(wanted.with_name("tiny-11"), None)


def test_never_leaves_an_unfinished_run_alone_and_says_so(wanted, caplog):
    save(wanted, 2)
    with caplog.at_level(logging.INFO):
        assert choose_run_folder(wanted, "never", RECIPE) == RunFolder(wanted.with_name("tiny-2"), None)
    assert f"{wanted} is kept" in caplog.text
    save(wanted.with_name("tiny-2"), 2)
    assert choose_run_folder(wanted, "never", RECIPE) == RunFolder(wanted.with_name("tiny-3"), None)


def test_a_folder_whose_own_name_ends_in_a_number_has_its_own_series(wanted):
    dated = wanted.with_name("pilot-2024")
    save(dated, 4, finished=True)
    fresh = choose_run_folder(dated, "auto", RECIPE).path
    unfinished = save(fresh, 2)
    assert choose_run_folder(dated, "auto", RECIPE) == RunFolder(fresh, unfinished)


def test_a_path_continues_that_run_or_that_checkpoint(wanted, tmp_path):
    older, newest = save(wanted, 2), save(wanted, 4)
    elsewhere = tmp_path / "other"
    assert choose_run_folder(elsewhere, str(wanted), RECIPE) == RunFolder(wanted, newest)
    assert choose_run_folder(elsewhere, str(older), RECIPE) == RunFolder(wanted, older)


def test_a_path_without_checkpoint_is_refused(wanted):
    with pytest.raises(ValueError, match=re.escape(f"{wanted} is not a checkpoint")):
        choose_run_folder(wanted, str(wanted), RECIPE)


@pytest.mark.parametrize("taken", ["runs", "runs/tiny", "runs/tiny/tensorboard"])
def test_a_file_in_place_of_a_folder_is_refused(taken, wanted, tmp_path):
    (tmp_path / taken).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / taken).write_text("")
    assert choose_run_folder(wanted, "auto", RECIPE) == RunFolder(wanted, None)
    with pytest.raises(ValueError, match=re.escape(f"{wanted} can't be written to (") + ".*; choose another --output"):
        make_run_folder(wanted)


def test_a_folder_that_cannot_be_written_to_or_read_is_refused(wanted, monkeypatch):
    """Permissions would not stop root, who may run the tests."""

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", denied)
    with pytest.raises(ValueError, match=re.escape(f"{wanted} can't be written to (Permission denied)")):
        make_run_folder(wanted)
    monkeypatch.setattr(Path, "is_file", denied)
    with pytest.raises(ValueError, match=re.escape(f"{wanted} can't be read (Permission denied)")):
        choose_run_folder(wanted, "auto", RECIPE)


def test_a_folder_that_is_made_is_empty_but_for_its_own(wanted):
    for _ in range(2):
        make_run_folder(wanted)
    assert list(wanted.rglob("*")) == [wanted / "tensorboard"]


@pytest.mark.parametrize("resume", ["auto", "path"])
def test_a_run_of_another_recipe_is_refused_naming_the_setting_and_the_way_out(wanted, resume):
    save(wanted, 2)
    other = load_recipe("tiny", ["model.leaders=16", "training.learning_rate=0.5"])
    message = (
        r"step_00000002 is of another recipe: model\.leaders is 8 there and 16 now \(2 settings differ\); "
        "use its recipe, another --output-dir, or --resume never"
    )
    with pytest.raises(ValueError, match=message):
        choose_run_folder(wanted, str(wanted) if resume == "path" else "auto", other)
    assert choose_run_folder(wanted, "never", other).resume_from is None


def test_a_finished_run_of_another_recipe_is_in_nobodys_way(wanted):
    save(wanted, 4, finished=True, recipe=load_recipe("tiny", ["model.leaders=16"]))
    assert choose_run_folder(wanted, "auto", RECIPE) == RunFolder(wanted.with_name("tiny-2"), None)


@pytest.mark.parametrize(
    "override",
    [
        "data.workers=3",
        "data.on_error=skip",
        "data.cache_gb=3",
        "data.resized_cache_gb=3",
        "data.cache_folder=elsewhere",
        "training.log_every=9",
        "training.evaluate_every=9",
        "training.checkpoint_every=9",
        "training.keep_checkpoints=9",
        "evaluation.batch_size=9",
        "evaluation.blur_sigma=2.5",
    ],
)
def test_what_does_not_change_the_computation_may_change(wanted, override):
    checkpoint = save(wanted, 2)
    check_same_recipe(checkpoint, load_recipe("tiny", [override]))


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("data.dataset_weights.brains=10", r"data\.dataset_weights\.brains is None there and 10\.0 now"),
        ("data.sampling=natural", r"data\.sampling is 'balanced' there and 'natural' now"),
        ("training.seed=1", r"training\.seed is 0 there and 1 now"),
        ("training.epochs=2", r"training\.epochs is 1 there and 2 now"),
        ("training.precision=bf16", r"training\.precision is 'fp32' there and 'bf16' now"),
        ("model.kernel_sizes=[1, 3]", r"model\.kernel_sizes is \[1, 3, 5\] there and \[1, 3\] now"),
    ],
)
def test_what_changes_the_computation_is_refused(wanted, override, name):
    checkpoint = save(wanted, 2)
    with pytest.raises(ValueError, match=f"{name};"):
        check_same_recipe(checkpoint, load_recipe("tiny", [override]))


def test_a_setting_younger_than_the_checkpoint_had_its_default_there(wanted):
    checkpoint = save(wanted, 2)
    state = json.loads((checkpoint / STATE_NAME).read_text())
    del state["recipe"]["data"]["sampling"]
    (checkpoint / STATE_NAME).write_text(json.dumps(state))
    check_same_recipe(checkpoint, RECIPE)
    with pytest.raises(ValueError, match=r"data\.sampling is 'balanced' there and 'natural' now;"):
        check_same_recipe(checkpoint, load_recipe("tiny", ["data.sampling=natural"]))
