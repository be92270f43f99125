"""Methods by name; and one that is not the project's, added as the documentation says: a file, a recipe, a fixture."""

from __future__ import annotations

import csv
import inspect
import sys
from pathlib import Path

import pytest
import torch
from hand_made import hand_made_shards
from launches import run
from methods import toy_method
from methods.toy_method import RECIPE, REGISTRY, Toy, ToySettings

from unimmad.checkpoint.folder import find_checkpoint, read_state
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.tensor_slices import TensorReader
from unimmad.config import TrainingSettings, load_recipe
from unimmad.methods.registry import METHODS, MethodType, build_method, new_model, settings_of
from unimmad.model.anomaly_map import gaussian_blur, image_scores
from unimmad.model.method import FittedMethod, Method, StepFacts
from unimmad.model.unimmad import UniMMAD
from unimmad.report.comparison import read_report

LINES = 30
"""Of a class that is a method, at most."""


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "toy.yaml"
    path.write_text(RECIPE)
    return path


def test_every_method_is_one_and_says_whether_it_is_fitted():
    for name, kind in METHODS.items():
        assert issubclass(kind.network, Method), name
        assert kind.is_fitted == issubclass(kind.network, FittedMethod)
        assert isinstance(kind.network.modalities_joined, str)
    assert METHODS["unimmad"].network is UniMMAD
    assert [name for name, kind in METHODS.items() if kind.is_fitted] == ["memory_bank", "level_search"]


def test_a_recipe_may_name_the_methods_that_are_handed_in_and_no_others(recipe_file):
    recipe = load_recipe(str(recipe_file), ["model.width=2"], settings_of(REGISTRY))
    assert (recipe.method, recipe.model) == ("toy", ToySettings(image_size=32, width=2))
    with pytest.raises(ValueError, match="method 'toy' is not one of unimmad, unimmad_search, rd, "):
        load_recipe(str(recipe_file), methods=settings_of(METHODS))
    with pytest.raises(ValueError, match=r"unknown key model.widht; did you mean model.width\?"):
        load_recipe(str(recipe_file), ["model.widht=2"], settings_of(REGISTRY))
    with pytest.raises(ValueError, match="--set method=rd: a method has a recipe of its own; name one by --recipe"):
        load_recipe("tiny", ["method=rd"], settings_of(METHODS))
    with pytest.raises(KeyError):
        build_method(recipe)


def test_a_new_model_is_the_registrys_and_the_same_for_the_same_seed(recipe_file):
    recipe = load_recipe(str(recipe_file), (), settings_of(REGISTRY))
    first, again, other = (new_model(recipe, seed, REGISTRY)[0] for seed in (1, 1, 2))
    assert isinstance(first, Toy)
    weight = "network.0.weight"
    assert torch.equal(first.state_dict()[weight], again.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])


def test_a_network_may_be_a_function_that_makes_one():
    assert not MethodType(ToySettings, lambda settings: Toy(settings)).is_fitted


def test_a_method_is_a_small_thing():
    assert len(inspect.getsource(Toy).splitlines()) <= LINES


def test_the_toys_numbers_are_those_of_its_formula():
    """Its fixture: with zero weights the network gives its bias back."""
    toy = Toy(ToySettings(image_size=4))
    bias_C = torch.tensor([0.5, -1.0, 2.0])
    with torch.no_grad():
        for parameter in toy.parameters():
            parameter.zero_()
        toy.network[2].bias.copy_(bias_C)
    images_TCHW = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    output = toy(images_TCHW, [2, 1], torch.tensor([0, 1, 0]))
    squares_THW = (images_TCHW - bias_C[:, None, None]).square().sum(1)
    expected = torch.stack([(squares_THW[0] ** 2 + squares_THW[1] ** 2).sqrt(), squares_THW[2]])
    assert torch.allclose(toy.maps(output), expected)
    loss = toy.loss(output, StepFacts(torch.tensor([1.0, 2.0, 0.0]), TrainingSettings())).total
    assert torch.isclose(loss, (squares_THW.mean((1, 2)) / 3 * torch.tensor([1.0, 2.0, 0.0])).sum() / 3)


@pytest.fixture(scope="module")
def compared(tmp_path_factory, recipe_file) -> Path:
    """The toy, trained for two steps, and a memory bank: compared and exported in a process of their own."""
    folder = tmp_path_factory.mktemp("toy")
    shards = hand_made_shards(folder / "shards", ["solids"])
    program = [sys.executable, toy_method.__file__, str(shards), str(folder / "out"), str(recipe_file)]
    done = run(program, Path(__file__).parents[2], threads=1)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "out"


def test_it_is_trained_and_saved(compared):
    checkpoint = find_checkpoint(compared / "toy" / "seed_0" / "run")
    state = read_state(checkpoint)
    assert (state["step"], state["finished"], state["recipe"]["method"]) == (2, True, "toy")
    before, _ = new_model(load_recipe(str(compared / "toy" / "seed_0" / "recipe.yaml"), (), settings_of(REGISTRY)),
                          methods=REGISTRY)  # fmt: skip
    after = TensorReader(checkpoint)
    for name, tensor in before.state_dict().items():
        assert not torch.equal(after.read(name), tensor), name


def test_it_is_loaded_by_a_registry_that_has_it_alone(compared):
    checkpoint = find_checkpoint(compared / "toy" / "seed_0" / "run")
    loaded = load_checkpoint(checkpoint, methods=REGISTRY)
    assert isinstance(loaded.model, Toy)
    with pytest.raises(ValueError, match="method 'toy' is not one of unimmad") as told:
        load_checkpoint(checkpoint)
    assert "\n" not in str(told.value)


def test_it_is_evaluated_also_on_its_way(compared):
    for folder in ("evaluation", "run/evaluations/step_00000002"):
        header = read_report(compared / "toy" / "seed_0" / folder).header
        assert (header["method"], header["modalities joined"]) == ("toy", "root of the sum of squares")


def test_it_is_exported_with_the_same_numbers(compared):
    exported = torch.export.load(compared / "toy.pt2").module()
    loaded = load_checkpoint(find_checkpoint(compared / "toy" / "seed_0" / "run"), methods=REGISTRY)
    images_BMCHW = torch.rand(3, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    normalised_BMCHW = (images_BMCHW - exported.mean_MC11) / exported.std_MC11
    settings = loaded.recipe.evaluation
    with torch.no_grad():
        output = loaded.model(normalised_BMCHW.flatten(0, 1), [2, 2, 2], torch.tensor([0, 1] * 3))
        expected_BHW = gaussian_blur(loaded.model.maps(output), *settings.blur(32))
    maps_BHW, scores_B = exported(images_BMCHW)
    assert torch.allclose(maps_BHW, expected_BHW, rtol=1e-5)
    assert torch.allclose(scores_B, image_scores(expected_BHW, settings.top_share, settings.score_pool), rtol=1e-5)


def test_it_stands_in_the_table_beside_the_others(compared):
    with (compared / "comparison.csv").open(newline="") as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"toy", "memory_bank"}
    with (compared / "cost.csv").open(newline="") as file:
        costs = {row["method"]: row for row in csv.DictReader(file)}
    assert costs["toy"]["steps"] == "2"
    assert float(costs["toy"]["GFLOP"]) == pytest.approx(2 * 2 * 32 * 32 * 9 * (3 * 3 + 3 * 3) / 1e9, abs=0.05)
    assert (compared / "disputed" / "01.png").is_file()
