"""Which samples a growing run sees, and what it refuses before it trains."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hand_made import hand_made_checkpoint, hand_made_shards

from unimmad.checkpoint.folder import find_checkpoint
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.trained_on import TrainedOn
from unimmad.config import load_recipe
from unimmad.data.reading.order import TrainingOrder
from unimmad.data.reading.shard_cache import ShardCache
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.roi import Roi, Rois
from unimmad.methods.registry import METHODS
from unimmad.parallel.world import World
from unimmad.training import growing_run
from unimmad.training.arguments import parse_arguments
from unimmad.training.forgetting import Forgetting
from unimmad.training.grow_arguments import parse_grow_arguments
from unimmad.training.grown_model import begin_leaders, check_placement, grown_model, load_source
from unimmad.training.growth import Growth, check_same_growth, open_growing_data, replayed_samples
from unimmad.training.run import _say_next
from unimmad.training.run_folder import RunFolder

ROPE, COOKIE = "solids/rope", "solids/cookie"


def part_of(folder: Path, target: Path, class_name: str | None = None, **modality: str) -> Path:
    """A copy of shards with one of the classes, or with something else said of a modality."""
    shutil.copytree(folder, target)
    index: dict[str, Any] = json.loads((target / "index.json").read_text())
    if class_name is not None:
        index["samples"] = [sample for sample in index["samples"] if sample["class_name"] == class_name]
    for entry in index["datasets"].values():
        entry["modalities"] = [
            {**known, **(modality if known["name"] == "depth" else {})} for known in entry["modalities"]
        ]
    (target / "index.json").write_text(json.dumps(index))
    return target


def with_thermal(folder: Path, target: Path, dataset: str = "heat") -> Path:
    """A copy of shards as another dataset, which has thermal images in place of colours."""
    shutil.copytree(folder, target)
    text = (
        (target / "index.json").read_text().replace('"rgb":', '"thermal":').replace('"name":"rgb"', '"name":"thermal"')
    )
    index: dict[str, Any] = json.loads(text.replace('"name": "rgb"', '"name": "thermal"'))
    index["datasets"] = dict.fromkeys([dataset], next(iter(index["datasets"].values())))
    for sample in index["samples"]:
        sample["dataset"] = dataset
    (target / "index.json").write_text(json.dumps(index))
    return target


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("shards")
    both = hand_made_shards(folder / "solids", ["solids"])
    return {
        "solids": both,
        "materials": hand_made_shards(folder / "materials", ["materials"]),
        "rope": part_of(both, folder / "rope", "rope"),
        "cookie": part_of(both, folder / "cookie", "cookie"),
    }


def checkpoint(run: Path, data: Path, *overrides: str) -> Path:
    shards = ShardSet.open([data])
    classes = {name: [ref.entry for ref in refs] for name, refs in shards.classes("train").items()}
    recipe = load_recipe("tiny", ["model.image_size=32", *overrides])
    return hand_made_checkpoint(run, recipe, [data], trained_on=TrainedOn.of(shards.datasets, classes))[0]


@pytest.fixture(scope="module")
def knows_rope(tmp_path_factory, folders) -> Path:
    return checkpoint(tmp_path_factory.mktemp("run") / "mine", folders["rope"])


@pytest.fixture
def growth(knows_rope, folders) -> Growth:
    return Growth(knows_rope, (folders["rope"],), replay_fraction=0.01, distillation=0.0)


def test_half_of_the_draws_are_new_and_a_share_of_the_old_images_is_seen_again(growth, folders):
    data = open_growing_data(growth, [folders["materials"]], ShardCache.of(), seed=0)
    assert data.old == (ROPE,)
    classes = data.shards.classes("train")
    assert {name: len(refs) for name, refs in classes.items() if name == ROPE} == {ROPE: 1}
    assert len(data.shards.classes("test")[ROPE]) == 3, "to measure by"
    assert data.trained_on.classes == (ROPE, *data.new)
    assert len(data.new) == 3
    order = TrainingOrder(classes, lambda ref: ref.folder, 0, batch=1000, weights=data.weights)
    old = sum(ref.class_name == ROPE for ref in order.at(0))
    assert 450 < old < 550


def test_what_is_seen_again_follows_from_the_seed_and_the_class_alone(folders):
    refs = ShardSet.open([folders["materials"]]).classes("train")
    name = next(iter(refs))
    many = {name: [replace(ref, entry=replace(ref.entry, key=f"{k}")) for k in range(50) for ref in refs[name][:1]]}
    chosen = replayed_samples(many, 0.1, seed=0)
    assert len(chosen) == 5
    assert chosen == replayed_samples({**refs, **many}, 0.1, seed=0) - replayed_samples(refs, 0.1, seed=0)
    assert chosen != replayed_samples(many, 0.1, seed=1)
    assert len(replayed_samples(many, 1, seed=0)) == 50
    assert replayed_samples(many, 0, seed=0) == set()


def test_a_class_of_a_dataset_that_is_known_may_come_in_shards_of_its_own(growth, folders):
    data = open_growing_data(growth, [folders["cookie"]], ShardCache.of(), seed=0)
    assert set(data.shards.classes("test")) == {ROPE, COOKIE}
    assert data.trained_on.classes == (ROPE, COOKIE)
    with pytest.raises(ValueError, match=r"dataset solids is in both .*, with the class cookie in each"):
        ShardSet.open([folders["solids"], folders["cookie"]])


def test_a_class_that_is_known_is_refused_unless_it_is_replaced(growth, folders):
    with pytest.raises(ValueError, match="knows class solids/rope already: leave it out, or say --replace"):
        open_growing_data(growth, [folders["solids"]], ShardCache.of(), seed=0)
    replacing = replace(growth, replace=True, replay_fraction=0.0)
    data = open_growing_data(replacing, [folders["solids"]], ShardCache.of(), seed=0)
    assert (data.new, data.old) == ((COOKIE, ROPE), ())
    assert len(data.shards.classes("train")[ROPE]) == len(ShardSet.open([folders["solids"]]).classes("train")[ROPE])


def test_the_old_images_of_a_class_that_is_replaced_have_been_seen(growth, folders, tmp_path):
    others = part_of(folders["rope"], tmp_path / "others")
    old = [ref.entry for ref in ShardSet.open([folders["rope"]]).classes("train")[ROPE]]
    index = json.loads((others / "index.json").read_text())
    index["samples"] = [one for one in index["samples"] if one["split"] != "train" or one["key"] == old[0].key]
    (others / "index.json").write_text(json.dumps(index))
    data = open_growing_data(replace(growth, replace=True, replay_fraction=0.0), [others], ShardCache.of(), seed=0)
    assert len(data.shards.classes("train")[ROPE]) == 1
    assert data.trained_on.seen(old) == [one.key for one in old]


def test_what_is_not_taken_along_is_said(growth, knows_rope, tmp_path, caplog):
    source = tmp_path / "source"
    shutil.copytree(find_checkpoint(knows_rope), source)
    alone = World(0, 1, 0, torch.device("cpu"))
    load_source(replace(growth, source=source), False, alone, METHODS)
    assert "not taken along" not in caplog.text
    (source / "added_classes").mkdir()
    (source / "added_classes" / "nut.safetensors").touch()
    load_source(replace(growth, source=source), False, alone, METHODS)
    assert "has classes that add-class added, or feedback: they are not taken along" in caplog.text


def test_what_is_recorded_after_a_replacement_can_be_read_together(folders, tmp_path):
    source = checkpoint(tmp_path / "both", folders["solids"])
    replacing = Growth(source, (folders["solids"],), 0.01, 0.0, replace=True)
    data = open_growing_data(replacing, [folders["rope"]], ShardCache.of(), seed=0)
    assert (data.new, data.old) == ((ROPE,), (COOKIE,))
    assert len(data.shards.classes("train")[COOKIE]) == 1
    assert data.recorded == (folders["rope"],)
    growth = replace(replacing, old_data=(folders["cookie"],))
    data = open_growing_data(growth, [folders["rope"]], ShardCache.of(), seed=0)
    assert set(ShardSet.open(data.recorded).classes("test")) == {ROPE, COOKIE}


def test_what_the_checkpoint_says_it_was_trained_on_is_what_training_used(growth, folders, tmp_path):
    heat = with_thermal(folders["cookie"], tmp_path / "heat")
    data = open_growing_data(growth, [heat], ShardCache.of(), seed=0)
    slots = {m.name: m.slot for m in data.trained_on.datasets["heat"].modalities}
    assert slots == {"thermal": 2, "depth": 1}, "rgb's slot is rgb's"
    assert data.trained_on.datasets["heat"] == data.shards.datasets["heat"]
    recipe = load_recipe("tiny", ["model.image_size=32"])
    unsaid, _ = hand_made_checkpoint(tmp_path / "unsaid", recipe, [folders["rope"]])
    data = open_growing_data(replace(growth, source=unsaid), [heat], ShardCache.of(), seed=0)
    assert data.trained_on.classes == (ROPE, "heat/cookie")
    assert data.trained_on.datasets == data.shards.datasets


def test_classes_of_one_dataset_keep_where_to_look(folders, tmp_path):
    shards = ShardSet.open([folders["rope"]]).with_rois(Rois({ROPE: Roi(foreground=True)}))
    classes = {name: [ref.entry for ref in refs] for name, refs in shards.classes("train").items()}
    recipe = load_recipe("tiny", ["model.image_size=32"])
    run, _ = hand_made_checkpoint(tmp_path / "a", recipe, [], trained_on=TrainedOn.of(shards.datasets, classes))
    data = open_growing_data(Growth(run, (), 0.0, 1.0), [folders["cookie"]], ShardCache.of(), seed=0)
    assert set(data.trained_on.datasets["solids"].roi) == {"rope"}


def test_old_and_new_checkpoint_are_measured_by_one_recipe(knows_rope, folders, growth, monkeypatch):
    given = parse_grow_arguments(
        ["--checkpoint", str(knows_rope), "--data", str(folders["cookie"]), "--set", "evaluation.batch_size=3"]
    )
    sizes = []
    monkeypatch.setattr(growing_run, "class_metrics", lambda _, recipe, *rest: sizes.append(recipe.evaluation))
    data = open_growing_data(growth, [folders["cookie"]], ShardCache.of(), seed=0)
    alone = World(0, 1, 0, torch.device("cpu"))
    growing_run._measured(growth.source, data, given, alone, alone.ranks)
    assert sizes == [given.recipe.evaluation]


def test_a_new_sensor_and_new_leaders_come_in_together(folders, tmp_path):
    heat = with_thermal(folders["cookie"], tmp_path / "heat")
    source = checkpoint(tmp_path / "two", folders["rope"], "model.modality_slots=2")
    growth = Growth(source, (folders["rope"],), 0.01, 0.0, new_leaders=2)
    data = open_growing_data(growth, [heat], ShardCache.of(), seed=0)
    recipe = load_recipe("tiny", ["model.image_size=32", "model.modality_slots=3", "model.leaders=10"])
    loaded = load_checkpoint(source)
    model = grown_model(loaded, recipe, growth, data, METHODS)
    order = TrainingOrder(data.shards.classes("train"), lambda ref: ref.folder, 0, batch=2, weights=data.weights)
    begin_leaders(model, loaded, data, order, recipe)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    ("overrides", "growth", "ep_size", "fits"),
    [
        (("model.leaders=10", "model.banks=2"), {"new_leaders": 2}, 4, True),
        (("model.leaders=11",), {"new_leaders": 3}, 2, False),
        (("model.leaders=16", "model.banks=2"), {"new_leaders": 8, "new_banks": 1}, 4, False),
        (("model.leaders=16", "model.banks=2"), {"new_leaders": 8, "new_banks": 1}, 2, True),
    ],
)
def test_as_many_ranks_share_the_leaders_as_before(overrides, growth, ep_size, fits):
    recipe = load_recipe("tiny", list(overrides))
    expected = nullcontext() if fits else pytest.raises(ValueError, match="can't be placed evenly on the")
    with expected:
        check_placement(recipe, Growth(Path(), (), 0.0, 0.0, **growth), ep_size, world_size=4)


def test_no_class_is_promised_to_be_kept_that_nobody_measures(folders, tmp_path):
    source = checkpoint(tmp_path / "both", folders["solids"])
    growth = Growth(source, (folders["rope"],), 0.01, 0.0, max_forgetting=0.02)
    with pytest.raises(ValueError, match="no test images, normal and anomalous, of solids/cookie, which"):
        open_growing_data(growth, [folders["materials"]], ShardCache.of(), seed=0)
    value = {"I-AUROC": 1.0}
    found = Forgetting({"a/a": value}, {"a/a": value, "a/c": value}, ("a/c",), ("a/a", "a/b", "a/c"), 1, 1, 0.0)
    assert found.unmeasured == ["a/b"]
    with pytest.raises(ValueError, match="nobody can say what a/b lost of its I-AUROC"):
        found.check(0.02)
    found.check(None)


@pytest.mark.parametrize("has_new_leaders", [False, True])
def test_what_was_done_already_is_no_advice_for_a_class_that_lost_too_much(has_new_leaders):
    before, after = {"I-AUROC": 0.9}, {"I-AUROC": 0.5}
    found = Forgetting({"a/a": before}, {"a/a": after}, (), ("a/a",), 1, 1, 0.0)
    with pytest.raises(ValueError, match="grow again") as error:
        found.check(0.02, has_new_leaders)
    assert ("with --new-leaders" in str(error.value)) is not has_new_leaders
    found.check(None, has_new_leaders)


def test_a_grown_run_ends_with_the_command_that_gives_it_thresholds(tmp_path, capsys):
    alone = World(0, 1, 0, torch.device("cpu"))
    _say_next(RunFolder(tmp_path, None), alone, grown=True)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"next: unimmad evaluate --checkpoint {tmp_path}"
    assert said[1].startswith("note: it has no thresholds")
    assert said[1].endswith(f"unimmad calibrate --checkpoint {tmp_path}")
    _say_next(RunFolder(tmp_path, None), alone)
    assert "calibrate" not in capsys.readouterr().out


def test_the_source_is_known_by_what_it_was_at_the_start(growth, folders, tmp_path):
    shutil.copytree(growth.source, tmp_path / "source")
    moving = replace(growth, source=tmp_path / "source")
    facts = moving.facts("")
    shutil.rmtree(tmp_path / "source")
    assert moving.facts("") == facts == growth.facts("")
    with pytest.raises(ValueError, match="is no longer there"):
        replace(moving).facts("")
    replayed = {open_growing_data(growth, [folders["cookie"]], ShardCache.of(), seed=seed).replayed for seed in (0, 1)}
    whole = replace(growth, replay_fraction=1.0)
    assert len(replayed | {open_growing_data(whole, [folders["cookie"]], ShardCache.of(), seed=0).replayed}) > 1


def test_the_folder_that_one_is_in_has_a_name(knows_rope, folders, monkeypatch):
    monkeypatch.chdir(knows_rope.parent.parent)
    given = parse_grow_arguments(["--checkpoint", ".", "--data", str(folders["materials"])])
    assert given.output_dir.name == "mine-grown"


def test_what_can_t_be_grown_from_these_data_is_said_before_a_step(growth, folders, tmp_path):
    def refused(match: str, growth: Growth, data: Path) -> None:
        with pytest.raises(ValueError, match=match):
            open_growing_data(growth, [data], ShardCache.of(), seed=0)

    renamed = with_thermal(folders["cookie"], tmp_path / "renamed", dataset="solids")
    refused("solids has the modalities depth, thermal, and the checkpoint knows it with depth, rgb", growth, renamed)
    other = part_of(folders["cookie"], tmp_path / "other", kind="gray")
    refused("has depth as gray, and the checkpoint knows depth as depth .dataset solids", growth, other)
    nothing_old = replace(growth, old_data=())
    refused(
        "no old training sample to replay .* was trained on solids/rope.*--old-data", nothing_old, folders["materials"]
    )
    promised = replace(nothing_old, replay_fraction=0.0, max_forgetting=0.02)
    refused("--max-forgetting: there are no test images", promised, folders["materials"])


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--new-leaders", "3", "--own-bank"], "a bank of their own has 8 leaders; give 8 or a multiple of it"),
        (["--new-leaders", "100000000"], "--new-leaders 100000000 would take .* GB in training, and this machine has"),
        (["--own-bank"], "--own-bank is for --new-leaders N"),
        (["--replay-fraction", "2"], "--replay-fraction 2 must be from 0 to 1"),
        (["--max-forgetting", "nan"], "--max-forgetting nan must be"),
        (["--set", "model.leaders=4"], "--set model.leaders: the checkpoint's network stays as it is"),
        (["--bogus"], "unrecognized arguments: --bogus; unimmad grow --help"),
    ],
)
def test_options_that_do_not_go_are_refused_in_a_line(knows_rope, folders, words, match):
    with pytest.raises(ValueError, match=match) as caught:
        parse_grow_arguments(["--checkpoint", str(knows_rope), "--data", str(folders["materials"]), *words])
    assert "\n" not in str(caught.value)


def test_what_is_not_said_is_the_checkpoint_s(knows_rope, folders):
    words = ["--checkpoint", str(knows_rope.parent.parent), "--data", str(folders["materials"])]
    given = parse_grow_arguments([*words, "--set", "training.steps=7", "--set", "model.modality_slots=5"])
    assert given.growth is not None
    assert given.growth.old_data == (folders["rope"],)
    assert given.output_dir.name == "mine-grown"
    assert (given.recipe.training.steps, given.recipe.model.modality_slots) == (7, 5)
    assert given.growth.distillation == 0
    without = parse_grow_arguments([*words, "--replay-fraction", "0"])
    assert without.growth is not None
    assert without.growth.distillation == 1


def test_methods_without_experts_are_pointed_elsewhere(tmp_path, folders):
    recipe = load_recipe_of("rd")
    run, _ = hand_made_checkpoint(tmp_path / "run", recipe, [folders["rope"]])
    with pytest.raises(ValueError, match="and rd has none: unimmad add-class gives it a class by a bank"):
        parse_grow_arguments(["--checkpoint", str(run), "--data", str(folders["materials"])])


def load_recipe_of(name: str) -> Any:
    words = ["--recipe", name, "--set", "model.backbone=resnet18", "--set", "model.backbone_weights=none"]
    return parse_arguments([*words, "--set", "model.image_size=64"]).recipe


def test_a_run_is_continued_by_the_command_that_began_it(growth, knows_rope, tmp_path):
    with pytest.raises(ValueError, match="was begun by unimmad train, not by unimmad grow"):
        check_same_growth(knows_rope, growth.facts(""))
    check_same_growth(knows_rope, None)
    facts = growth.facts("some images")
    grown = tmp_path / "grown"
    shutil.copytree(find_checkpoint(knows_rope), grown)
    state = json.loads((grown / "state.json").read_text())
    (grown / "state.json").write_text(json.dumps({**state, "growth": facts}))
    check_same_growth(grown, facts)
    with pytest.raises(ValueError, match="was begun by unimmad grow, not by unimmad train"):
        check_same_growth(grown, None)
    with pytest.raises(ValueError, match=r"was begun with --replay-fraction 0\.01; use it again"):
        check_same_growth(grown, replace(growth, replay_fraction=0.5).facts("others"))
    with pytest.raises(ValueError, match="was begun with other old images to see again: give the same --old-data"):
        check_same_growth(grown, growth.facts("others"))
