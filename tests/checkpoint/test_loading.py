"""From a checkpoint folder to the model that was saved, or to a message that says why not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hand_made import hand_made_checkpoint

from unimmad.assembly import empty_model
from unimmad.checkpoint.folder import STATE_NAME, read_state
from unimmad.checkpoint.loading import fill_model, load_checkpoint
from unimmad.checkpoint.pieces import PieceReader
from unimmad.config import load_recipe
from unimmad.model.unimmad import UniMMAD

RECIPE = load_recipe("tiny")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, UniMMAD]:
    return hand_made_checkpoint(tmp_path_factory.mktemp("run"), RECIPE, [Path("data/somewhere")])


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    """A checkpoint to damage."""
    return shutil.copytree(saved[0], tmp_path / "step_00000003")


def change_state(checkpoint: Path, **changes: object) -> None:
    (checkpoint / STATE_NAME).write_text(json.dumps(read_state(checkpoint) | changes))


def test_the_saved_model_comes_back_with_its_facts(saved):
    folder, model = saved
    loaded = load_checkpoint(folder)
    assert (loaded.folder, loaded.step, loaded.recipe) == (folder, 3, RECIPE)
    assert loaded.backbone_weights.startswith("none")
    assert loaded.state["data"] == ["data/somewhere"]
    assert not loaded.model.training
    ours, theirs = loaded.model.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize(
    ("override", "name", "theirs", "ours"),
    [
        ("model.embed_dim=8", r"levels\.0\.\S+", r"\[.*16.*\]", r"\[.*8.*\]"),
        ("model.leaders=16", r"\S+\.routed\.gate\.linear\.weight", r"\[8, 16\]", r"\[16, 16\]"),
        ("model.banks=2", r"\S+\.bank\.kernels_GNEEkk", r"\[1, 4, 16, 16, 1, 1\]", r"\[2, 4, 16, 16, 1, 1\]"),
        ("model.image_size=96", r"input_embedding\.\S+", r"\[12, 64, 64\]", r"\[12, 96, 96\]"),
    ],
)
def test_another_recipes_model_is_refused_naming_tensor_and_shapes(saved, override, name, theirs, ours):
    model = empty_model(load_recipe("tiny", [override]).model)
    with pytest.raises(ValueError, match=rf"is of another recipe: {name} is {theirs} there and {ours} in this one"):
        fill_model(model, PieceReader(saved[0]))


def test_a_tensor_that_the_checkpoint_lacks_is_named(copy):
    index = json.loads((copy / "index.json").read_text())
    del index["levels.1.out.0.weight"]
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"no tensor levels\.1\.out\.0\.weight"):
        load_checkpoint(copy)


def test_a_recipe_that_does_not_fit_the_tensors_is_refused(copy):
    recipe = load_recipe("tiny", ["model.embed_dim=8"])
    change_state(copy, recipe=recipe.model_dump(mode="json"))
    with pytest.raises(ValueError, match="is of another recipe"):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    "recipe", [[], "tiny", {"name": "x", "model": {"embed_dimension": 8}}, {"name": "x", "model": {"leaders": 0}}]
)
def test_a_recipe_that_is_none_is_refused_naming_the_file(copy, recipe):
    change_state(copy, recipe=recipe)
    with pytest.raises(ValueError, match=re.escape(f"{copy / STATE_NAME}: recipe: ")):
        load_checkpoint(copy)


@pytest.mark.parametrize("file", ["state.json", "index.json", "model-00001.safetensors"])
def test_a_missing_or_cut_file_is_named(copy, file):
    whole = (copy / file).read_bytes()
    (copy / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=re.escape(file)):
        load_checkpoint(copy)
    (copy / file).unlink()
    with pytest.raises(ValueError, match=re.escape(file)):
        load_checkpoint(copy)


def test_reading_and_evaluating_need_neither_deepspeed_nor_the_trainer():
    code = (
        "import sys, unimmad.evaluation.evaluate, unimmad.checkpoint.loading\n"
        "heavy = ('deepspeed', 'tensorboard', 'unimmad.parallel', 'unimmad.training', 'unimmad.train')\n"
        "print([name for name in sys.modules if name.startswith(heavy)])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"
