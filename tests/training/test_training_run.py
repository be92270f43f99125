"""What a run refuses before it builds anything."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hand_made import hand_made_checkpoint

from unimmad.checkpoint import tensor_slices as pieces
from unimmad.config import load_recipe
from unimmad.parallel.world import World
from unimmad.serialization import folder_lock
from unimmad.serialization.folder_lock import FolderLock
from unimmad.serialization.lock_holder import Holder
from unimmad.training import first_model, loop, run
from unimmad.training.arguments import parse_arguments
from unimmad.training.run import train
from unimmad.training.run_folder import LOCK_NAME

CONFIG = Path(__file__).parents[2] / "ds_configs" / "ep1.json"
ALONE = World(0, 1, 0, torch.device("cpu"))


@pytest.fixture
def argv(parity_shards, tmp_path) -> list[str]:
    argv = ["--recipe", "tiny", "--data", str(parity_shards), "--output-dir", str(tmp_path / "run")]
    return [*argv, "--deepspeed_config", str(CONFIG)]


def test_a_weight_of_a_data_set_that_is_not_there_is_an_error_before_anything_is_made(argv, tmp_path):
    with pytest.raises(ValueError, match=r"data.dataset_weights: no dataset is called solid; .* did you mean solids\?"):
        train(parse_arguments([*argv, "--set", "data.dataset_weights.solid=2"]), ALONE)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_which_another_training_writes(argv, tmp_path):
    with FolderLock(LOCK_NAME, "training") as lock:
        lock.take(tmp_path / "run")
        with pytest.raises(ValueError, match=rf"run is in use: {LOCK_NAME} is held by process {os.getpid()} on "):
            train(parse_arguments(argv), ALONE)
        assert (tmp_path / "run" / LOCK_NAME).is_file()


@pytest.mark.parametrize("option", ["--resume", "--init-from"])
def test_a_checkpoint_that_changed_unless_asked(argv, tmp_path, monkeypatch, option):
    checkpoint, _ = hand_made_checkpoint(tmp_path / "old", load_recipe("tiny"), [])
    content = bytearray((checkpoint / "model-00001.safetensors").read_bytes())
    content[-2] ^= 1
    (checkpoint / "model-00001.safetensors").write_bytes(content)
    monkeypatch.setattr(run, "build_engine", Mock(side_effect=NotImplementedError))
    if option == "--resume":
        argv[argv.index("--output-dir") + 1] = str(tmp_path / "old")
    argv = [*argv, option, str(checkpoint)]
    with pytest.raises(ValueError, match=r"model-00001\.safetensors is not what was saved"):
        train(parse_arguments(argv), ALONE)
    with pytest.raises(NotImplementedError):
        train(parse_arguments([*argv, "--no-verify"]), ALONE)
    assert not list(tmp_path.rglob(LOCK_NAME)), "whatever went wrong, the next may begin"


def test_what_the_last_start_of_this_job_saved_while_it_was_waited_for_is_continued(argv, tmp_path, monkeypatch):
    """A node that was lost may still end its step; the requeued job begins meanwhile, elsewhere."""
    hand_made_checkpoint(tmp_path / "run", load_recipe("tiny"), [], step=3)
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.setattr(folder_lock, "POLL_S", 0.02)
    lost = Holder.this_process().model_copy(update={"machine": "another"})
    (tmp_path / "run" / LOCK_NAME).write_text(lost.model_dump_json())

    def save_and_end() -> None:
        hand_made_checkpoint(tmp_path / "run", load_recipe("tiny"), [], step=5)
        (tmp_path / "run" / LOCK_NAME).unlink()

    monkeypatch.setattr(run, "build_engine", Mock(side_effect=NotImplementedError))
    filled = Mock(side_effect=pieces.TensorReader)
    monkeypatch.setattr(first_model, "TensorReader", filled)
    timer = threading.Timer(0.5, save_and_end)
    timer.start()
    with pytest.raises(NotImplementedError):
        train(parse_arguments(argv), ALONE)
    assert filled.call_args.args[0].name == "step_00000005"


def test_a_training_that_lost_its_folder_saves_nothing_more(monkeypatch):
    lock = FolderLock(LOCK_NAME, "training")
    lock._lost = True
    trainer = Mock(engine=Mock(world=ALONE), lock=lock)
    save = Mock()
    monkeypatch.setattr(loop, "save_checkpoint", save)
    with pytest.raises(ValueError, match="was taken over by another process"):
        loop.Trainer._save(trainer, 2, 2)
    save.assert_not_called()
