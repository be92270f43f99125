"""What a checkpoint says of the data it was trained on is read back; older ones say nothing."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hand_made import hand_made_checkpoint, hand_made_shards

from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.trained_on import TrainedOn, read_trained_on
from unimmad.config import load_recipe
from unimmad.data.shard_set import ShardSet
from unimmad.evaluation.evaluate import evaluate_checkpoint
from unimmad.prediction.detector import Detector


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> ShardSet:
    return ShardSet.open([hand_made_shards(tmp_path_factory.mktemp("data"), ["solids", "brains"])])


@pytest.fixture(scope="module")
def solids_only(shards) -> TrainedOn:
    return TrainedOn.of(shards.datasets, [name for name in shards.classes("train") if name.startswith("solids/")])


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


@pytest.mark.parametrize(
    "entry", [None, [], {}, {"datasets": {"a": {}}, "classes": []}, {"datasets": [], "classes": []}]
)
def test_another_form_is_refused_naming_the_file(entry):
    with pytest.raises(ValueError, match=r"run/state\.json: trained_on has another form"):
        read_trained_on({"trained_on": json.loads(json.dumps(entry))}, "run/state.json")
