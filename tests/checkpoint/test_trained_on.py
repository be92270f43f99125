"""What a checkpoint says of the data it was trained on is read back; older ones say nothing."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hand_made import hand_made_checkpoint, hand_made_shards

from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.trained_on import TrainedOn, read_trained_on
from unimmad.config import load_recipe
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.synthetic import synthetic_sets
from unimmad.data.writing.shards import write_shards
from unimmad.evaluation.evaluate import evaluate_checkpoint
from unimmad.inference.detector import Detector


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    return ShardSet.open([hand_made_shards(tmp_path_factory.mktemp("data"), ["solids", "brains"])])


def trained_on(shards: ShardSet, of_classes: str = "") -> TrainedOn:
    classes = shards.classes("train")
    return TrainedOn.of(
        shards.datasets,
        {name: [ref.entry for ref in refs] for name, refs in classes.items() if name.startswith(of_classes)},
    )


@pytest.fixture(scope="module")
def solids_only(shards) -> TrainedOn:
    return trained_on(shards, "solids/")


@pytest.fixture(scope="module")
def moved(solids_only, tmp_path_factory):
    """A checkpoint whose shards are not there."""
    folder, _ = hand_made_checkpoint(
        tmp_path_factory.mktemp("run"), load_recipe("tiny"), ["gone"], trained_on=solids_only
    )
    return folder


def test_only_the_data_sets_of_the_classes_are_kept(shards, solids_only):
    assert set(shards.datasets) == {"solids", "brains"}
    assert list(solids_only.datasets) == ["solids"]
    assert [m.slot for m in solids_only.datasets["solids"].modalities] == [0, 1]


def test_it_comes_back_from_state_json(moved, solids_only):
    assert load_checkpoint(moved).trained_on == solids_only


def test_prediction_knows_modalities_and_classes_without_the_shards(moved, solids_only):
    catalogue = Detector.from_checkpoint(moved, device="cpu").catalogue
    assert catalogue.datasets == solids_only.datasets
    assert catalogue.classes == solids_only.classes


def test_evaluation_names_classes_that_training_did_not_see(moved, shards, tmp_path):
    checkpoint = load_checkpoint(moved)
    plain = dataclasses.replace(checkpoint, recipe=load_recipe("tiny", ["evaluation.pictures_per_class=0"]))
    device = next(checkpoint.model.parameters()).device
    report = evaluate_checkpoint(plain, shards.folders, tmp_path, device=device, workers=0, progress=False).report
    assert report.header["not trained on"].startswith("brains/brain_upper, brains/brain_ventricles;")


def test_an_older_checkpoint_says_nothing():
    assert read_trained_on({"data": ["a"]}, "state.json") is None


def test_a_checkpoint_without_digests_compares_classes_and_modalities_alone(solids_only):
    entry = solids_only.entry()
    del entry["digests"]
    older = read_trained_on({"trained_on": entry}, "state.json")
    assert older.digests == {}
    other = dict.fromkeys(solids_only.digests, "other")
    assert older.difference(dataclasses.replace(solids_only, digests=other)) == ""


def test_the_same_samples_in_other_shards_elsewhere_are_the_same_data(shards, tmp_path):
    same = [drawn for drawn in synthetic_sets(train_per_class=2) if drawn.name in shards.datasets]
    write_shards(same[::-1], tmp_path, shard_bytes=1, progress=False)
    elsewhere = ShardSet.open([tmp_path])
    assert len(elsewhere.indexes[0].shards) > len(shards.indexes[0].shards)
    assert trained_on(shards).difference(trained_on(elsewhere)) == ""


def test_other_data_differ_in_classes_then_modalities_then_samples(shards, solids_only, tmp_path):
    both = trained_on(shards)
    assert both.difference(solids_only) == "the data given lack class brains/brain_upper and 1 more"
    says = "the data given have class brains/brain_upper and 1 more, which it has not seen"
    assert solids_only.difference(both) == says
    entry = shards.datasets["solids"]
    flat = dataclasses.replace(solids_only, datasets={"solids": entry.model_copy(update={"modalities": ()})})
    assert solids_only.difference(flat) == "dataset solids has other modalities"
    again = [drawn for drawn in synthetic_sets(seed=1, train_per_class=2) if drawn.name == "solids"]
    write_shards(again, tmp_path, progress=False)
    redrawn = trained_on(ShardSet.open([tmp_path]))
    assert redrawn.classes == solids_only.classes
    assert solids_only.difference(redrawn).endswith("has other training samples")


@pytest.mark.parametrize(
    "entry", [None, [], {}, {"datasets": {"a": {}}, "classes": []}, {"datasets": [], "classes": []}]
)
def test_another_form_is_refused_naming_the_file(entry):
    with pytest.raises(ValueError, match=r"run/state\.json: trained_on has another form"):
        read_trained_on({"trained_on": json.loads(json.dumps(entry))}, "run/state.json")
