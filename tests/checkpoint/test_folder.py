"""Which checkpoints of a run are seen, kept and found."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from unimmad.checkpoint import folder as folder_module
from unimmad.checkpoint.folder import LATEST, STATE_NAME, CheckpointFolder, find_checkpoint, newest_run, read_state


def save(folder: CheckpointFolder, step: int, keep: int = 2) -> Path:
    partial = folder.begin(step)
    (partial / STATE_NAME).write_text(json.dumps({"recipe": {}, "step": step}))
    return folder.commit(partial, step, keep)


def names(folder: CheckpointFolder) -> list[str]:
    return sorted(path.name for path in folder.root.iterdir())


@pytest.fixture
def run(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "runs" / "demo")


def test_a_run_without_checkpoints_has_no_newest(run):
    assert run.newest() is None
    run.root.mkdir(parents=True)
    assert run.newest() is None


def test_a_commit_is_the_newest_and_leaves_nothing_hidden(run):
    assert save(run, 5) == run.root / "step_00000005"
    assert run.newest() == run.root / "step_00000005"
    assert names(run) == [LATEST, "step_00000005"]
    assert (run.root / LATEST).read_text() == "step_00000005\n"


def test_the_newest_stay(run):
    for step in (5, 10, 100, 1000):
        save(run, step)
    assert names(run) == [LATEST, "step_00000100", "step_00001000"]
    save(run, 1001, keep=1)
    assert names(run) == [LATEST, "step_00001001"]


def test_a_run_continued_from_an_older_checkpoint_keeps_what_it_saves(run):
    for step in (5, 10, 15):
        save(run, step, keep=3)
    saved = save(run, 6, keep=2)
    assert saved.is_dir()
    assert run.newest() == saved
    assert len(names(run)) == 3


def test_the_same_step_can_be_saved_again(run):
    save(run, 5)
    partial = run.begin(5)
    (partial / STATE_NAME).write_text(json.dumps({"recipe": {}, "step": 5, "again": True}))
    assert read_state(run.commit(partial, 5, 2))["again"] is True
    assert names(run) == [LATEST, "step_00000005"]


def test_nothing_is_seen_before_the_commit_and_the_next_save_clears_up(run):
    save(run, 5)
    partial = run.begin(10)
    (partial / STATE_NAME).write_text(json.dumps({"recipe": {}, "step": 10}))
    assert run.newest() == run.root / "step_00000005"
    another = run.begin(15)
    assert not partial.exists()
    assert another.is_dir()


def test_two_saves_of_one_step_do_not_write_into_each_other(run):
    """A job that was requeued may begin while a lost node still writes."""
    lost, ours = run.begin(10), run.begin(10)
    (ours / STATE_NAME).write_text(json.dumps({"recipe": {}, "step": 10}))
    assert run.commit(ours, 10, 2).is_dir()
    with pytest.raises(FileNotFoundError):
        run.commit(lost, 10, 2)
    assert read_state(run.root / "step_00000010")["step"] == 10


@pytest.mark.parametrize("dies_at", ["_sync_files", "write_text_aside"])
def test_a_save_that_dies_leaves_a_whole_checkpoint_as_the_newest(run, monkeypatch, dies_at):
    save(run, 5)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(folder_module, dies_at, die)
        with pytest.raises(KeyboardInterrupt):
            save(run, 10)
    newest = run.newest()
    assert newest == run.root / "step_00000005"
    assert read_state(newest)["step"] == 5
    save(run, 15)
    assert run.newest() == run.root / "step_00000015"
    assert not [name for name in names(run) if name.startswith(".")]


@pytest.mark.parametrize("step", [5, 15], ids=["the same step again", "an old step goes"])
def test_a_removal_that_dies_leaves_no_torn_checkpoint_in_sight(run, monkeypatch, step):
    for earlier in (5, 10):
        save(run, earlier)
    partial = run.begin(step)
    (partial / STATE_NAME).write_text(json.dumps({"recipe": {}, "step": step}))

    def die(path: Path, ignore_errors: bool) -> None:
        if path.exists():
            next(path.iterdir()).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(folder_module.shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            run.commit(partial, step, keep=2)
    visible = [name for name in names(run) if name.startswith("step_")]
    assert "step_00000010" in visible
    assert all((run.root / name / STATE_NAME).is_file() for name in visible)
    assert run.newest() is not None
    save(run, 20)
    assert not [name for name in names(run) if name.startswith(".")]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt], ids=["it fails", "it is killed"])
def test_a_checkpoint_is_there_though_another_of_its_step_did_not_get_its_place(run, monkeypatch, error):
    checkpoint = save(run, 5)
    (checkpoint / "thresholds.json").write_text("kept")
    partial, rename = run.begin(5), Path.rename
    (partial / STATE_NAME).write_text(json.dumps({"recipe": {}, "step": 5}))

    def fail(path: Path, target: Path) -> Path:
        if path == partial:
            raise error
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fail)
        with pytest.raises(error):
            run.commit(partial, 5, 2)
    assert checkpoint.exists() is (error is OSError)
    assert run.newest() == checkpoint
    assert (checkpoint / "thresholds.json").read_text() == "kept"
    save(run, 10)
    assert not [name for name in names(run) if name.startswith(".")]


@pytest.mark.parametrize(
    "text",
    [
        None,
        b"",
        b"step_00000099\n",
        b"\xff\xfe\x00",
        b"../../elsewhere",
        b"/",
        b"..",
        b"step_00000005/../../../elsewhere",
    ],
    ids=["none", "empty", "of a removed folder", "binary", "outside", "root", "above", "outside by a step"],
)
def test_without_a_usable_latest_the_highest_whole_step_is_the_newest(run, text):
    for step in (5, 10):
        save(run, step)
    (run.root / "step_00000020").mkdir()
    (run.root / LATEST).unlink()
    elsewhere = run.run.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / STATE_NAME).write_text(json.dumps({"recipe": {}, "step": 7}))
    if text is not None:
        (run.root / LATEST).write_bytes(text)
    assert run.newest() == run.root / "step_00000010"


def test_only_what_is_named_like_a_step_is_a_checkpoint_and_may_be_removed(run):
    other = run.root / "step_of_mine"
    other.mkdir(parents=True)
    (other / STATE_NAME).write_text(json.dumps({"recipe": {}, "step": 5}))
    assert run.newest() is None
    for step in (5, 10, 15):
        save(run, step, keep=1)
    assert names(run) == [LATEST, "step_00000015", "step_of_mine"]


def test_a_checkpoint_is_found_from_its_own_folder_its_run_and_the_folder_between(run):
    save(run, 5)
    newest = save(run, 10)
    assert find_checkpoint(run.run) == newest
    assert find_checkpoint(run.root) == newest
    assert find_checkpoint(run.root / "step_00000005") == run.root / "step_00000005"


@pytest.mark.parametrize("place", ["nowhere", "empty", "runs/demo/evaluation"])
def test_a_folder_without_checkpoint_is_refused(run, tmp_path, place):
    save(run, 5)
    (tmp_path / "empty").mkdir()
    (run.run / "evaluation").mkdir()
    with pytest.raises(ValueError, match=rf"{place} is not a checkpoint, nor a run folder"):
        find_checkpoint(tmp_path / place)


def test_of_a_checkpoint_that_is_not_whole_the_missing_file_is_named(run):
    (save(run, 5) / STATE_NAME).unlink()
    for path in (run.run, run.root, run.root / "step_00000005"):
        with pytest.raises(ValueError, match=r"step_00000005 is not a whole checkpoint: state\.json is missing"):
            find_checkpoint(path)


def test_the_newest_run_is_the_one_that_saved_last(tmp_path):
    assert newest_run(tmp_path / "runs") is None
    for age, name in enumerate(("zebra", "demo", "apple")):
        run = CheckpointFolder(tmp_path / "runs" / name)
        save(run, 1000 * age + 1)
        os.utime(run.root / LATEST, (1000 - age, 1000 - age))
    (tmp_path / "runs" / "started").mkdir()
    assert newest_run(tmp_path / "runs") == tmp_path / "runs" / "zebra"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read"),
        (b"", "is damaged"),
        (b'{"step": 3, "reci', "is damaged"),
        (b"\xff\xfe\x00", "is damaged"),
        (b"[1, 2]", "not the state of a UniMMAD checkpoint"),
        (b'{"step": 3}', "not the state of a UniMMAD checkpoint"),
        (b'{"recipe": {}}', "not the state of a UniMMAD checkpoint"),
        (b'{"recipe": {}, "step": -1}', "step: Input should be greater"),
        (b'{"recipe": {}, "step": "3"}', "step: Input should be a valid integer"),
        (b'{"recipe": {}, "step": 9223372036854775808}', "step: Input should be less"),
        (b'{"recipe": {}, "step": 3, "data": 5}', "data: Input should be a valid list"),
        (b'{"recipe": {}, "step": 3, "data": [5]}', r"data\.0: Input should be a valid string"),
        (b'{"recipe": {}, "step": 3, "format": 2}', "format: Input should be 1"),
        (b'{"recipe": [], "step": 3}', "recipe: Input should be a valid dictionary"),
    ],
)
def test_a_state_that_is_missing_or_damaged_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / STATE_NAME).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{STATE_NAME}:? .*{message}|{STATE_NAME} {message}"):
        read_state(tmp_path)
