"""From a checkpoint folder to the model that was saved, or to a message that says why not."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hand_made import hand_made_checkpoint, spoil_weight
from safetensors.torch import load_file, save_file

from unimmad.checkpoint.digests import DIGESTS_NAME
from unimmad.checkpoint.folder import STATE_NAME, read_state
from unimmad.checkpoint.loading import fill_model, load_checkpoint
from unimmad.checkpoint.tensor_slices import TensorReader
from unimmad.config import load_recipe
from unimmad.model import backbone
from unimmad.model.unimmad import UniMMAD

RECIPE = load_recipe("tiny")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, UniMMAD]:
    return hand_made_checkpoint(tmp_path_factory.mktemp("run"), RECIPE, [Path("data/somewhere")])


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    """A checkpoint to damage, whose digests do not tell it."""
    folder = Path(shutil.copytree(saved[0], tmp_path / "step_00000003"))
    (folder / DIGESTS_NAME).unlink()
    return folder


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
    model = UniMMAD(load_recipe("tiny", [override]).model)
    with pytest.raises(ValueError, match=rf"is of another recipe: {name} is {theirs} there and {ours} in this one"):
        fill_model(model, TensorReader(saved[0]))


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


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"image_size": 2**40}, "no model can have these sizes|is of another recipe"),
        ({"image_size": 2**62}, "no model can have these sizes"),
        ({"leaders": 2**40}, "is of another recipe"),
        ({"base_experts": 2**45, "banks": 8}, "no model can have these sizes|is of another recipe"),
        ({"fcm_dim": 2**31, "bottleneck_dim": 2**31}, "no model can have these sizes|is of another recipe"),
        ({"modality_slots": 2**62}, "no model can have these sizes"),
        ({"leaders": 10**30}, "no model can have these sizes"),
        ({"embed_dim": 2**40}, "embed_dim: Input should be less than"),
        ({"decoder_blocks": [10**9, 1, 1]}, r"decoder_blocks\.0: Input should be less than"),
        ({"kernel_sizes": [1] * 10**5}, "kernel_sizes: .* at most 8 items"),
    ],
    ids=str,
)
def test_a_model_that_no_machine_could_hold_is_refused_before_it_is_built(copy, sizes, says):
    """Its tensors would have to be in the files; petabytes are not asked of the system."""
    model = RECIPE.model.model_dump(mode="json") | sizes
    change_state(copy, recipe=RECIPE.model_dump(mode="json") | {"model": model})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=says) as refused:
        load_checkpoint(copy)
    assert "\n" not in str(refused.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000, "kB"


def test_shapes_that_only_the_index_has_are_refused_before_the_model_is_built(copy):
    """Index and recipe agree on 16 TB; the files do not have them."""
    size = 2**20 * 32
    index = json.loads((copy / "index.json").read_text())
    entry = index["input_embedding.embedding_CHW"]
    entry["shape"] = [12, size, size]
    entry["pieces"][0]["numel"] = 12 * size * size
    (copy / "index.json").write_text(json.dumps(index))
    model = RECIPE.model.model_dump(mode="json") | {"image_size": size}
    change_state(copy, recipe=RECIPE.model_dump(mode="json") | {"model": model})
    with pytest.raises(ValueError, match=r"embedding_CHW has the shape \[12, 64, 64\], and the index says"):
        load_checkpoint(copy)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["teacher.network.bn1.running_var", "levels.1.out.0.weight"])
def test_a_value_that_is_not_finite_is_refused_by_tensor_and_file(copy, name, value):
    """It would make every score NaN, which is above no threshold."""
    file = spoil_weight(copy, name, value)
    with pytest.raises(
        ValueError, match=rf"^checkpoint file {re.escape(f'{file}: {name}')} holds values that are NaN or infinite"
    ):
        load_checkpoint(copy)


def test_a_tensor_of_another_type_is_refused(copy):
    """Half precision would load as if it were exact."""
    file = copy / "model-00000.safetensors"
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    save_file(tensors | {name: tensors[name].half()}, file)
    with pytest.raises(ValueError, match=re.escape(f"{file} is damaged: {name} is F16, not F32")):
        load_checkpoint(copy)


def test_a_tensor_in_the_place_of_another_of_its_shape_is_refused(copy):
    index = json.loads((copy / "index.json").read_text())
    norms = [name for name in index if name.startswith("encoder.") and name.endswith(".running_var")]
    first, second = norms[0], next(name for name in norms[1:] if index[name]["shape"] == index[norms[0]]["shape"])
    index[first]["pieces"] = index[second]["pieces"]
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=re.escape(f"a piece of {first} is called '{second}'")):
        load_checkpoint(copy)


@pytest.mark.parametrize(
    "name", ["hf-hub:someone/model", "hf_hub:someone/model", "local-dir:/tmp/model", "timm/resnet10t", "../resnet10t"]
)
def test_a_backbone_from_another_place_is_refused(copy, monkeypatch, name):
    """timm would fetch what the name leads to, and build what that says."""
    monkeypatch.setattr(backbone.timm, "create_model", lambda *_, **__: pytest.fail("timm was asked"))
    model = RECIPE.model.model_dump(mode="json") | {"backbone": name}
    change_state(copy, recipe=RECIPE.model_dump(mode="json") | {"model": model})
    with pytest.raises(ValueError, match=r"recipe: model\.backbone: name a network of timm's own list"):
        load_checkpoint(copy)


@pytest.fixture
def audited() -> Iterator[list[str]]:
    """What Python is asked to open, to list, to connect to or to start, from here to the test's end."""
    seen: list[str] = []
    watching = [True]

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if (watching and event in ("open", "os.listdir", "os.mkdir", "subprocess.Popen")) or event.startswith(
            "socket."
        ):
            seen.append(f"{event} {arguments[:1]}")

    sys.addaudithook(watch)
    yield seen
    watching.clear()


def test_no_place_that_a_checkpoint_names_is_touched_when_it_is_loaded(copy, tmp_path, audited):
    place = tmp_path / "named"
    place.mkdir()
    recipe = RECIPE.model_dump(mode="json")
    recipe["model"]["backbone_weights"] = str(place / "weights.pth")
    recipe["data"]["cache_folder"] = str(place / "cache")
    change_state(copy, recipe=recipe, data=[str(place / "data"), "https://127.0.0.1/set"], converted_from=str(place))
    audited.clear()
    load_checkpoint(copy)
    assert [event for event in audited if "state.json" in event], "the hook sees what is opened"
    assert [event for event in audited if str(place) in event or event.startswith(("socket", "subprocess"))] == []
    assert list(place.iterdir()) == []


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
