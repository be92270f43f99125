from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
from pydantic import ValidationError

from unimmad.config import RECIPES_FOLDER, EvaluationSettings, Recipe, check_dataset_weights, load_recipe, parse_recipe
from unimmad.methods.registry import METHOD_SETTINGS
from unimmad.model.anomaly_map import gaussian_blur

SHIPPED = sorted(path.stem for path in RECIPES_FOLDER.glob("*.yaml"))


def write_recipe(folder, text: str) -> str:
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_promised_recipes_are_shipped():
    assert {"demo", "tiny", "paper"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_is_valid_and_survives_a_round_trip(name):
    recipe = load_recipe(name, methods=METHOD_SETTINGS)
    assert recipe.name == name
    assert parse_recipe(recipe.model_dump(mode="json"), "it", METHOD_SETTINGS) == recipe


@pytest.mark.parametrize("size", [64, 128, 256, 512])
def test_a_blur_in_pixels_is_the_same_at_every_image_size(size):
    for given in ({}, {"blur_sigma": 4}, {"blur_kernel": 15}, {"blur_sigma": None, "blur_sigma_at_256": None}):
        assert EvaluationSettings.model_validate(given).blur(size) == (15, 4.0, "zeros")
    assert load_recipe("paper").evaluation.blur(size) == (15, 4.0, "zeros")
    assert load_recipe("tiny").evaluation.blur(size) == (5, 1.0, "zeros")


@pytest.mark.parametrize(("size", "blur"), [(64, (9, 1.0)), (128, (17, 2.0)), (256, (33, 4.0)), (512, (65, 8.0))])
def test_a_blur_at_256_follows_the_image_size_and_its_window_reaches_four_sigma(size, blur):
    assert EvaluationSettings(blur_sigma_at_256=4).blur(size) == (*blur, "zeros")
    assert EvaluationSettings(blur_sigma_at_256=0).blur(size) == (1, 0, "zeros")


def test_paper_has_the_published_numbers():
    recipe = load_recipe("paper")
    model, training, evaluation = recipe.model, recipe.training, recipe.evaluation
    assert (model.image_size, model.backbone, model.backbone_weights) == (256, "wide_resnet50_2.tv2_in1k", "imagenet")
    assert (model.fcm_dim, model.bottleneck_dim, model.decoder_planes) == (512, 2048, (256, 128, 64))
    assert (model.embed_dim, model.leaders, model.base_experts, model.top_k, model.banks) == (256, 32, 8, 2, 1)
    assert (training.global_batch, training.epochs, training.learning_rate) == (10, 200, 1e-3)
    assert (training.optimizer, training.schedule, training.focal_gamma) == ("adam", "epoch", 2.0)
    assert (evaluation.blur_kernel, evaluation.blur_sigma, evaluation.top_share) == (15, 4.0, 0.001)
    assert sorted(recipe.data.dataset_weights.values()) == [0.5, 10.0, 10.0]


def test_a_recipe_of_ones_own_is_named_after_its_file_and_fills_in_defaults(tmp_path):
    recipe = load_recipe(write_recipe(tmp_path, "model: {embed_dim: 64}\n"))
    assert recipe.name == "own"
    assert recipe.model.embed_dim == 64
    assert recipe.model.leaders == Recipe(name="defaults").model.leaders


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("model.embed_dim=64", "model", "embed_dim", 64),
        ("training.learning_rate=1e-3", "training", "learning_rate", 0.001),
        ("training.learning_rate=5E-4", "training", "learning_rate", 0.0005),
        ("training.learning_rate=.5e-3", "training", "learning_rate", 0.0005),
        ("model.decoder_planes=[8, 8, 4]", "model", "decoder_planes", (8, 8, 4)),
        ("model.backbone_weights=a folder/weights=2.pth", "model", "backbone_weights", "a folder/weights=2.pth"),
        ("data.dataset_weights={brats: 3, visa: 1e-1}", "data", "dataset_weights", {"brats": 3.0, "visa": 0.1}),
        (" training.seed =7", "training", "seed", 7),
    ],
)
def test_an_override_changes_its_value_and_nothing_else(override, section, key, value):
    plain = load_recipe("tiny")
    changed = load_recipe("tiny", [override])
    assert getattr(getattr(changed, section), key) == value
    expected = plain.model_dump()
    expected[section][key] = value
    assert changed.model_dump() == expected


def test_overrides_apply_in_order():
    recipe = load_recipe("tiny", ["model.leaders=16", "model.banks=4", "model.leaders=12"])
    assert (recipe.model.leaders, recipe.model.banks) == (12, 4)


def test_one_dataset_weight_is_set_beside_the_others():
    before = load_recipe("paper").data.dataset_weights
    after = load_recipe("paper", ["data.dataset_weights.my_set=2.5"]).data.dataset_weights
    assert after == {**before, "my_set": 2.5}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.embed_dimm=64", "did you mean model.embed_dim?"),
        ("embed_dim=64", "did you mean model.embed_dim?"),
        ("modle.embed_dim=64", "did you mean model.embed_dim?"),
        ("training.learning_rates=1", "did you mean training.learning_rate?"),
        ("model.embed_dim.deeper=1", "unknown key model.embed_dim.deeper"),
        ("data.dataset_weights.a.b=1", "unknown key data.dataset_weights.a.b"),
        ("model=3", "model is a section; set one of its keys by --set model.KEY=VALUE"),
        ("model.embed_dim", "write it as KEY=VALUE"),
        ("model.kernel_sizes=[1, 3", "is not a YAML value"),
    ],
)
def test_a_wrong_override_names_itself_and_what_was_meant(override, says):
    with pytest.raises(ValueError, match="--set") as raised:
        load_recipe("tiny", [override])
    assert override in str(raised.value)
    assert says in str(raised.value)


@pytest.mark.parametrize(
    "override",
    [
        "model.embed_dim=many",
        "model.embed_dim=0",
        "model.embed_dim=2.5",
        "model.embed_dim=true",
        "model.kernel_sizes=[1, True]",
        "training.epochs=true",
        "training.seed=False",
        "training.learning_rate=yes",
        "data.dataset_weights.brats=true",
        "model.decoder_planes=[4, 4]",
        "model.kernel_sizes=[]",
        "model.initial_output_bias=.inf",
        "model.encoder_batchnorm=thawed",
        "training.learning_rate=-1e-3",
        "training.learning_rate=nan",
        "training.precision=fp8",
        "evaluation.top_share=1.5",
        "data.dataset_weights.brats=0",
        *("data.dataset_weights.brats=1e-300", "data.dataset_weights.brats=1e300"),
        *("evaluation.blur_sigma=1e-300", "evaluation.blur_sigma=0.05", "evaluation.blur_sigma=-1"),
        *("evaluation.blur_sigma_at_256=0.05", "evaluation.blur_sigma_at_256=257", "evaluation.blur_sigma_at_256=true"),
        *("evaluation.blur_sigma=.inf", "evaluation.blur_sigma=nan", "evaluation.blur_sigma=1e300"),
        *("training.learning_rate=1e-300", "training.learning_rate=1e300"),
        *("training.gradient_clipping=1e-300", "training.gradient_clipping=-1", "training.gradient_clipping=1e300"),
        *("training.focal_gamma=1e300", "training.balance_floor=1e300"),
        *("model.initial_leader_std=1e300", "model.initial_output_bias=-1e300"),
        *("data.cache_gb=1e-300", "data.cache_gb=1e300", "data.resized_cache_gb=1e300"),
    ],
)
def test_a_bad_value_is_refused_by_key_and_shown(override):
    key, _, value = override.partition("=")
    with pytest.raises(ValueError, match="--set") as raised:
        load_recipe("tiny", [override])
    assert key in str(raised.value)
    assert value.strip("[]") in str(raised.value).replace("-0.001", "-1e-3")


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (["model.image_size=100"], ["image_size 100", "32"]),
        (["model.top_k=9"], ["top_k 9", "leaders 8"]),
        (["model.banks=3"], ["leaders 8", "banks 3"]),
        (["model.kernel_sizes=[1, 4]"], ["kernel_sizes", "4", "odd"]),
        (["training.global_batch=10", "training.accumulation=4"], ["global_batch 10", "accumulation 4"]),
        (["training.compile=true", "training.activation_checkpointing=true"], ["compile and activation_checkpointing"]),
        (["evaluation.blur_kernel=6"], ["blur_kernel 6", "odd"]),
        (["evaluation.blur_sigma_at_256=4"], ["blur_kernel", "blur_sigma_at_256", "null"]),
        (["evaluation.blur_sigma_at_256=4", "evaluation.blur_kernel=null"], ["blur_sigma is", "blur_sigma_at_256"]),
    ],
)
def test_values_that_do_not_go_together_are_refused_by_name(overrides, names):
    with pytest.raises(ValueError, match="--set") as raised:
        load_recipe("tiny", overrides)
    assert all(name in str(raised.value) for name in names)


def test_all_mistakes_of_a_file_are_named_at_once(tmp_path):
    path = write_recipe(tmp_path, "model: {embed_dims: 64, leaders: none}\ntrainin: {}\n")
    with pytest.raises(ValueError, match="own") as raised:
        load_recipe(path)
    message = str(raised.value)
    assert path in message
    assert "unknown key model.embed_dims; did you mean model.embed_dim?" in message
    assert "model.leaders" in message
    assert "unknown key trainin; did you mean training?" in message


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="no recipe 'papper'") as raised:
        load_recipe("papper")
    assert "did you mean paper?" in str(raised.value)
    assert "tiny" in str(raised.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"model: [unclosed", "can't be read as YAML"),
        (b"\xff\xfe\x00", "can't be read as YAML"),
        (b"- model\n", "must be a mapping"),
        (b"", "must be a mapping"),
        (b"model:\n", "model"),
        (b"1: 2\n", "1"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path, content, says):
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as raised:
        load_recipe(str(path))
    assert str(path) in str(raised.value)


def test_a_recipe_is_frozen():
    recipe = load_recipe("tiny")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.model.embed_dim = 4
    with pytest.raises(ValidationError, match="frozen"):
        recipe.name = "other"


@pytest.mark.parametrize("weights", [{}, {"solids": 2.0}, {"brats": 5.0, "eyecandies": 0.5}])
def test_a_weight_may_be_of_the_data_or_of_those_that_a_shipped_recipe_weighs(weights):
    check_dataset_weights(weights, ["solids", "materials"])
    check_dataset_weights(load_recipe("paper").data.dataset_weights, ["solids"])


@pytest.mark.parametrize(("name", "hint"), [("solid", "; did you mean solids"), ("bratz", "$"), ("Eyecandies", "$")])
def test_a_weight_of_a_data_set_that_nobody_knows_is_an_error(name, hint):
    recipe = load_recipe("paper", [f"data.dataset_weights.{name}=2"])
    with pytest.raises(ValueError, match=f"no dataset is called {name}; there are solids, materials{hint}"):
        check_dataset_weights(recipe.data.dataset_weights, ["solids", "materials"])


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:/tmp/model", "timm/resnet18", ""])
def test_a_backbone_from_another_place_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"model\.backbone: name a network of timm's own list; .*backbone_weights=FILE"
    ):
        load_recipe("tiny", [f"model.backbone={name!r}"])


def test_every_real_number_is_bounded_on_both_sides():
    """1e300 is finite, and overflows in whatever is computed of it."""

    def reals(values: object, place: str) -> Iterator[str]:
        for key, value in values.items() if isinstance(values, dict) else ():
            yield from reals(value, f"{place}.{key}") if isinstance(value, dict) else ()
            if isinstance(value, float):
                yield f"{place}.{key}"

    recipe = load_recipe("paper").model_dump(mode="json")
    found = [key for section in ("model", "data", "training", "evaluation") for key in reals(recipe[section], section)]
    assert {"evaluation.blur_sigma", "data.dataset_weights.brats", "training.learning_rate"} < set(found)
    for key in found:
        for value in ("1e300", "-1e300", ".nan", ".inf", "-.inf"):
            with pytest.raises(ValueError, match=re.escape(key)):
                load_recipe("paper", [f"{key}={value}"])


@pytest.mark.parametrize(
    "override", ["evaluation.blur_sigma=0", "evaluation.blur_sigma=0.1", "training.gradient_clipping=0"]
)
def test_what_is_off_or_just_on_is_read(override):
    load_recipe("tiny", [override])


@pytest.mark.parametrize("sigma", [0.1, 1.0, 256.0])
def test_the_smallest_and_the_largest_blur_that_follows_the_size_are_finite(sigma):
    maps_BHW = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    assert gaussian_blur(maps_BHW, *EvaluationSettings(blur_sigma_at_256=sigma).blur(64)).isfinite().all()


@pytest.mark.parametrize("sigma", [0.0, 0.1, 4095.0])
def test_the_smallest_and_the_largest_blur_are_finite(sigma):
    maps_BHW = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    settings = load_recipe("tiny", [f"evaluation.blur_sigma={sigma}"]).evaluation
    blurred_BHW = gaussian_blur(maps_BHW, 255, settings.blur(64).sigma)
    assert blurred_BHW.isfinite().all()
    if sigma < 1:
        torch.testing.assert_close(blurred_BHW, maps_BHW)
