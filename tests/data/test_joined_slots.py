"""One name, one slot: in training, and wherever a trained model meets other data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hand_made import hand_made_shards

from unimmad.data.index import DatasetEntry, Modality
from unimmad.data.joined_slots import joined_by_name, named_apart
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.roi import Roi, Rois
from unimmad.evaluation.modalities import keep_modalities
from unimmad.inference.catalogue import Catalogue


def entry(**slots: int) -> DatasetEntry:
    modalities = tuple(Modality(name=name, slot=slot, kind="gray") for name, slot in slots.items())
    return DatasetEntry(field="industry", modalities=modalities)


def slots(found: dict[str, DatasetEntry]) -> dict[str, dict[str, int]]:
    return {name: {modality.name: modality.slot for modality in of.modalities} for name, of in found.items()}


def test_what_agrees_stays_as_it_is() -> None:
    given = {"a": entry(rgb=0, depth=1), "b": entry(rgb=0), "c": entry(t1=0, t2=1)}
    assert joined_by_name(given) == given


def test_a_name_has_one_slot_and_a_dataset_no_slot_twice() -> None:
    given = {"a": entry(rgb=0, depth=1), "b": entry(depth=0), "c": entry(depth=0, ir=1), "d": entry(ir=0, rgb=1)}
    assert slots(joined_by_name(given)) == {
        "a": {"rgb": 0, "depth": 1},
        "b": {"depth": 1},
        "c": {"depth": 1, "ir": 2},
        "d": {"rgb": 0, "ir": 2},
    }


def test_what_a_model_was_trained_on_decides() -> None:
    trained = {"a": entry(depth=0, rgb=1), "b": entry(ir=0)}
    found = joined_by_name({"a": entry(rgb=0, depth=1), "new": entry(rgb=0, ir=1, uv=2)}, trained)
    assert slots(found) == {"a": {"depth": 0, "rgb": 1}, "new": {"ir": 0, "rgb": 1, "uv": 2}}


def test_a_sensor_that_a_growing_model_does_not_know_has_a_slot_of_its_own() -> None:
    known = {"a": entry(rgb=0, depth=2)}
    given = {"a": entry(rgb=0, depth=2), "b": entry(thermal=0, depth=1), "c": entry(ir=0)}
    assert slots(named_apart(given, known)) == {"b": {"thermal": 1, "depth": 2}, "c": {"ir": 3}}
    assert named_apart(given, {}) == {}


def test_a_model_of_before_keeps_its_slots_and_refuses_new_data_that_may_be_either() -> None:
    trained = {"a": entry(rgb=0, depth=1), "b": entry(depth=0)}
    assert joined_by_name(trained, trained) == trained
    with pytest.raises(ValueError, match=r"dataset new has depth, .* in slot 1 in a and slot 0 in b"):
        joined_by_name({"new": entry(depth=0)}, trained)


def test_two_names_that_a_model_knows_in_one_slot_are_not_given_it_together() -> None:
    known = {"a": entry(rgb=0), "b": entry(depth=0)}
    assert slots(joined_by_name({"a": entry(rgb=0)}, known)) == {"a": {"rgb": 0}}
    with pytest.raises(ValueError, match=r"dataset c has rgb and depth, both of which .* slot 0"):
        joined_by_name({"c": entry(rgb=0, depth=1)}, known)


def test_samples_and_catalogue_have_the_joined_slots(tmp_path: Path) -> None:
    solids = hand_made_shards(tmp_path / "solids", ["solids"])
    alone = hand_made_shards(tmp_path / "alone", ["materials"])
    index = json.loads((alone / "index.json").read_text())
    for modality in index["datasets"]["materials"]["modalities"]:  # rgb, as one who has it alone may call it
        modality["name"] = "depth"
    for sample in index["samples"]:
        sample["images"] = {"depth": sample["images"]["rgb"]}
    (alone / "index.json").write_text(json.dumps(index))
    assert ShardSet.open([alone]).max_slot == 0
    both = ShardSet.open([solids, alone])
    (first, *_) = both.classes("train")["materials/cloth"]
    assert both.read(first, 16).slots == (1,)
    looked_at = both.with_rois(Rois({"materials/cloth": Roi(foreground=True)}))
    assert looked_at.datasets["materials"].modalities == both.datasets["materials"].modalities
    assert looked_at.read(first, 16).weights_HW is not None
    assert looked_at.with_rois(Rois()).digest() == both.digest() != looked_at.digest()
    kept = keep_modalities(both, "test", ["depth"])
    assert slots(kept.datasets) == {"solids": {"depth": 1}, "materials": {"depth": 1}}
    as_stored = ShardSet.open(
        [solids, alone], known={name: of for i in both.indexes for name, of in i.datasets.items()}
    )
    assert as_stored.digest() != both.digest()
    assert slots(Catalogue.of_indexes(both.indexes).datasets)["materials"] == {"depth": 1}
