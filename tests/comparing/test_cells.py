"""What is compared: a cell for each method and seed, with what all share."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from unimmad.comparing.cells import BACKBONE, RECIPE_OF, SHARED, Override, make_cells, method_recipe
from unimmad.config import load_recipe
from unimmad.methods.registry import METHOD_SETTINGS, METHODS

NARROW = ["uniad:model.neighbour_window=3"]
"""Of 4 x 4 tokens."""
TINY = load_recipe("tiny", ["training.steps=7", "data.sampling=natural"])


def cells(*methods, seeds=(0,), overrides=(), base=TINY):
    return make_cells(methods, seeds, base, [Override.parse(text) for text in overrides], Path("out"))


def written(path: Path, **values) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_a_cell_for_each_method_and_seed_in_a_folder_of_its_own():
    made = cells("rd", "memory_bank", seeds=(3, 5))
    assert [(cell.method, cell.seed) for cell in made] == [("rd", 3), ("rd", 5), ("memory_bank", 3), ("memory_bank", 5)]
    assert [cell.recipe.training.seed for cell in made] == [3, 5, 3, 5]
    assert len({cell.folder for cell in made}) == 4
    assert made[0].folder == Path("out/rd/seed_3")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_what_is_shared_and_keeps_its_optimizer_and_scoring(method):
    (cell,) = cells(method, overrides=NARROW if method == "uniad" else ())
    for section, keys in SHARED.items():
        for key in keys:
            assert getattr(getattr(cell.recipe, section), key) == getattr(getattr(TINY, section), key), key
    assert cell.recipe.data == TINY.data
    assert cell.recipe.method == method
    if method != "unimmad":
        own = load_recipe(RECIPE_OF.get(method, method), methods=METHOD_SETTINGS)
        for key in ("optimizer", "learning_rate", "betas", "gradient_clipping", "weight_decay"):
            assert getattr(cell.recipe.training, key) == getattr(own.training, key)
        for key in ("blur_kernel", "blur_sigma", "blur_border", "top_share", "score_pool"):
            assert getattr(cell.recipe.evaluation, key) == getattr(own.evaluation, key)


def test_the_backbone_is_shared_by_those_of_its_kind():
    for key in BACKBONE:
        assert getattr(cells("rd")[0].recipe.model, key) == getattr(TINY.model, key)
    own = load_recipe("vitad", methods=METHOD_SETTINGS)
    assert cells("vitad")[0].recipe.model.backbone == own.model.backbone


def test_a_recipe_stands_for_the_method_that_its_own_extends_without_what_is_more_in_it():
    base = load_recipe("best", ["model.image_size=64"], METHOD_SETTINGS)
    (cell,) = cells("unimmad", base=base, overrides=["training.steps=5"])
    assert (cell.recipe.method, cell.recipe.name) == ("unimmad", "best")
    assert cell.recipe.model.model_dump() == base.model.model_dump(exclude={"search"})
    assert cell.recipe.training.learning_rate == base.training.learning_rate
    assert cell.recipe.training.steps == 5


def test_the_base_recipe_stands_for_its_method_and_for_its_name():
    assert method_recipe("unimmad", TINY) is TINY
    assert method_recipe("tiny", TINY) is TINY
    of_rd = load_recipe("rd", methods=METHOD_SETTINGS)
    assert method_recipe("unimmad", of_rd).method == "unimmad", "by its shipped recipe"
    assert method_recipe("unimmad", of_rd).training.steps == of_rd.training.steps


def test_a_base_recipe_that_is_called_like_another_method_does_not_stand_for_it(tmp_path):
    base = load_recipe(written(tmp_path / "rd.yaml", model={"image_size": 64}))
    assert (base.name, base.method) == ("rd", "unimmad")
    assert method_recipe("rd", base).method == "rd"


def test_overrides_of_all_come_first_and_those_of_one_method_behind_them():
    made = cells("rd", "vitad", overrides=["rd:training.learning_rate=0.5", "training.learning_rate=0.25"])
    assert [cell.recipe.training.learning_rate for cell in made] == [0.5, 0.25]


def test_an_override_may_mend_what_is_shared():
    with pytest.raises(ValueError, match=r"uniad, with what recipe tiny says for all: .*neighbour_window 7"):
        cells("uniad")
    assert cells("uniad", overrides=NARROW)[0].recipe.model.neighbour_window == 3
    assert cells("dinomaly", overrides=["dinomaly:model.image_size=70"])[0].recipe.model.image_size == 70


def test_a_colon_of_a_value_names_no_method():
    assert Override.parse("data.cache_folder=s3://a:b") == Override(None, "data.cache_folder=s3://a:b")
    assert Override.parse("rd:data.cache_folder=s3://a:b") == Override("rd", "data.cache_folder=s3://a:b")


def test_recipe_files_go_by_their_names(tmp_path):
    file = written(tmp_path / "wide rd.yaml", method="rd", training={"learning_rate": 0.125})
    (cell,) = cells(file, overrides=["wide rd:training.gradient_clipping=3"])
    assert (cell.method, cell.folder) == ("wide rd", Path("out/wide rd/seed_0"))
    assert (cell.recipe.training.learning_rate, cell.recipe.training.gradient_clipping) == (0.125, 3)


@pytest.mark.parametrize(
    ("methods", "settings", "said"),
    [
        (
            ["unimad"],
            {},
            r"unimad, .*: .unimad. is neither a method \(unimmad, unimmad_search, rd, .*did you mean unimmad\?",
        ),
        (["memory_bnak"], {}, r"did you mean memory_bank\?"),
        (["rd", "rd"], {}, r"--methods: two are called rd"),
        ([], {}, "--methods names none"),
        (["rd"], {"seeds": (1, 1)}, "--seeds: 1 is there twice"),
        (["rd"], {"overrides": ["uniad:training.steps=3"]}, "--set uniad:training.steps=3: compared are rd"),
        (["rd"], {"overrides": ["training.seed=3"]}, "--set training.seed=3: training.seed follows --seeds"),
        (["rd"], {"overrides": ["method=uniad"]}, "a method has a recipe of its own; name one by --recipe"),
        (
            ["rd"],
            {"overrides": ["model.leaders=4"]},
            r"rd, .*: --set model.leaders=4: unknown key.*--set METHOD:KEY=VALUE",
        ),
        (["rd"], {"overrides": ["evaluation.score_pool=65"]}, "evaluation.score_pool 65 is larger than the image"),
        (["../rd"], {}, "can't name a folder"),
        (["rd$x$.yaml"], {}, "can't name a folder"),
        (["x/..yaml"], {}, "can't name a folder"),
        (["a:b"], {}, "can't name a folder"),
        (["=rd"], {}, "can't name a folder"),
        (["mine="], {}, "mine, .*: .* is neither a method"),
        (["mine=rd", "mine=uniad"], {}, "two are called mine"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(methods, settings, said):
    with pytest.raises(ValueError, match=said) as told:
        cells(*methods, **settings)
    assert "\n" not in str(told.value)


def test_variants_of_one_recipe_have_labels_and_settings_of_their_own(tmp_path):
    file = written(tmp_path / "a=b.yaml", method="rd", training={"learning_rate": 0.125})
    settings = ["fast:training.learning_rate=0.25", "other:training.learning_rate=0.5"]
    made = cells("rd", "fast=rd", f"other = {file}", file, seeds=(0, 1), overrides=settings)
    assert [cell.method for cell in made[::2]] == ["rd", "fast", "other", "a=b"]
    assert made[3].folder == Path("out/fast/seed_1")
    rates = [cell.recipe.training.learning_rate for cell in made[::2]]
    assert rates == [load_recipe("rd", methods=METHOD_SETTINGS).training.learning_rate, 0.25, 0.5, 0.125]
    assert {cell.recipe.method for cell in made} == {"rd"}


def test_one_recipe_under_two_names_is_refused(tmp_path):
    file = written(tmp_path / "mine.yaml", method="rd", training={"learning_rate": 0.125})
    for methods, base in [
        (("tiny", "unimmad"), TINY),
        (("tiny", "plain=tiny"), TINY),
        (("mine=rd", "rd"), TINY),
        (("rd", file), load_recipe(file, methods=METHOD_SETTINGS)),
    ]:
        with pytest.raises(ValueError, match=r"--methods: .* are the same recipe, \w+; .* tell them apart by --set"):
            cells(*methods, base=base)


def test_a_variant_may_be_of_the_base_recipe_itself():
    plain, other = cells("tiny", "other=tiny", overrides=["other:training.learning_rate=0.25"])
    assert plain.recipe == load_recipe("tiny", ["training.steps=7", "data.sampling=natural", "training.seed=0"])
    assert (other.method, other.recipe.training.learning_rate, other.recipe.training.steps) == ("other", 0.25, 7)


def test_two_files_of_one_name_are_refused(tmp_path):
    files = [written(tmp_path / folder / "mine.yaml", method="rd") for folder in ("a", "b")]
    with pytest.raises(ValueError, match=r"--methods: two are called mine; .*give one another, LABEL=METHOD"):
        cells(*files)
    with pytest.raises(ValueError, match="two are called rd"):
        cells("rd", written(tmp_path / "rd.yaml", method="rd"))
