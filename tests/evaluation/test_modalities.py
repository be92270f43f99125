"""Evaluation with some of the modalities, and with each of them alone."""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from pathlib import Path

import pytest
import torch

from unimmad.config import load_recipe
from unimmad.data.reading.shard_set import ShardSet
from unimmad.evaluation.each_modality import evaluate_each_modality, modality_table
from unimmad.evaluation.evaluate import evaluate_checkpoint
from unimmad.evaluation.modalities import classes_by_modality, keep_modalities
from unimmad.evaluation.run import evaluate_classes
from unimmad.metrics.metrics import METRIC_KEYS

CPU = torch.device("cpu")
BRAINS = ("brains/brain_upper", "brains/brain_ventricles")
SOLIDS = ("solids/cookie", "solids/rope")


@pytest.fixture(scope="module")
def shards(small_shards) -> ShardSet:
    return ShardSet.open([small_shards])


@pytest.fixture(scope="module")
def plain(checkpoint):
    """Without pictures, which take longest."""
    return dataclasses.replace(checkpoint, recipe=load_recipe("tiny", ["evaluation.pictures_per_class=0"]))


def without(shards: ShardSet, class_name: str, modality: str, number: int = 0) -> ShardSet:
    """A set in which the first test sample of ``class_name``, or another, lacks ``modality``."""
    first = shards.classes("test")[class_name][number].entry
    images = {name: member for name, member in first.images.items() if name != modality}
    samples = [
        dataclasses.replace(sample, images=images) if sample == first else sample
        for sample in shards.indexes[0].samples
    ]
    return ShardSet(shards.folders, [shards.indexes[0].model_copy(update={"samples": tuple(samples)})], shards.cache)


def test_only_the_modalities_asked_for_are_read_in_their_own_slots(shards):
    kept = keep_modalities(shards, "test", ["depth", "t2"])
    whole = shards.classes("test")
    for class_name, refs in kept.classes("test").items():
        assert len(refs) == len(whole[class_name]) == 3
        for reduced, full in zip((kept.read(ref, 64) for ref in refs), whole[class_name], strict=True):
            sample = shards.read(full, 64)
            place = sample.modalities.index(reduced.modalities[0])
            assert reduced.modalities == (("t2",) if class_name in BRAINS else ("depth",))
            assert reduced.slots == (sample.slots[place],)
            torch.testing.assert_close(reduced.images_MCHW[0], sample.images_MCHW[place])


def test_all_modalities_by_name_change_no_number(plain, shards):
    names = ["rgb", "depth", "t1", "t1ce", "t2", "flair"]
    run = partial(
        evaluate_classes, split="test", settings=plain.recipe.evaluation, device=CPU, workers=0, progress=False
    )
    named = [scored.result for scored in run(plain.model, keep_modalities(shards, "test", names))]
    assert named == [scored.result for scored in run(plain.model, shards)]


def test_a_slot_beyond_the_models_does_no_harm_when_left_out(shards):
    assert shards.max_slot == 3
    assert keep_modalities(shards, "test", ["rgb", "t1"]).max_slot == 0


def test_a_sample_with_none_of_them_names_class_and_modalities(shards):
    with pytest.raises(
        ValueError, match=r"class brains/\w+: sample \S+ has t1, t1ce, t2, flair, but none .*\(depth, rgb\)"
    ):
        keep_modalities(shards, "test", ["rgb", "depth"])


@pytest.mark.parametrize(
    ("name", "hint"),
    [("dept", r"'dept'; did you mean depth\?"), ("sonar", r"there are depth, flair, rgb, t1, t1ce, t2")],
)
def test_an_unknown_modality_is_refused(shards, name, hint):
    with pytest.raises(ValueError, match=f"no dataset has a modality .*{hint}"):
        keep_modalities(shards, "test", ["rgb", name])


def test_which_classes_can_do_with_one_modality(shards):
    found = classes_by_modality(shards, "test")
    assert {name: set(classes) for name, classes in found.items()} == {
        **{name: set(SOLIDS) for name in ("rgb", "depth")},
        **{name: set(BRAINS) for name in ("t1", "t1ce", "t2", "flair")},
    }
    lacking = classes_by_modality(without(shards, "solids/rope", "depth"), "test")
    assert lacking["depth"] == ("solids/cookie",)
    assert set(lacking["rgb"]) == set(SOLIDS)


def test_one_modality_alone_is_no_choice(shards):
    assert classes_by_modality(keep_modalities(shards, "test", ["rgb", "t1"]), "test") == {}


@pytest.fixture(scope="module")
def each(plain, small_shards, tmp_path_factory):
    output = tmp_path_factory.mktemp("each")
    run = partial(evaluate_checkpoint, plain, [small_shards], device=CPU, workers=0, progress=False)
    return evaluate_each_modality(run, [small_shards], "test", output), output


def test_the_table_has_all_and_each_of_a_data_sets_modalities(each):
    found, output = each
    rows = [(row.dataset, row.modality) for row in found.rows]
    assert rows[:3] == [("solids", "all"), ("solids", "rgb"), ("solids", "depth")]
    assert {modality for dataset, modality in rows if dataset == "brains"} == {"all", "t1", "t1ce", "t2", "flair"}
    text = modality_table(found).to_text()
    assert max(map(len, text.splitlines())) <= 80
    assert [line.split()[0] for line in text.splitlines()[6:9]] == ["all", "rgb", "depth"]
    markdown = (output / "modalities" / "modalities.md").read_text()
    assert len(re.findall(r"^\| solids +\|", markdown, re.MULTILINE)) == 3
    assert len((output / "modalities" / "modalities.csv").read_text().splitlines()) == 1 + len(rows)


def test_each_row_is_that_evaluations_mean(each, plain, small_shards, tmp_path):
    found, output = each
    assert (output / "modalities" / "depth" / "report.json").is_file()
    by_row = {(row.dataset, row.modality): row.mean for row in found.rows}
    assert by_row["solids", "all"].metrics == found.whole.report.mean_of_dataset("solids").metrics
    alone = evaluate_checkpoint(
        plain,
        [small_shards],
        tmp_path,
        device=CPU,
        workers=0,
        progress=False,
        modalities=["depth"],
        classes=SOLIDS,
    ).report
    assert alone.header["modalities"] == "depth only"
    assert by_row["solids", "depth"].metrics == alone.mean_of_dataset("solids").metrics
    assert by_row["solids", "depth"].metrics != by_row["solids", "all"].metrics
    assert set(alone.classes[0].metrics) == set(METRIC_KEYS)


def test_a_class_that_lacks_a_modality_is_left_out_of_its_mean_and_marked(each):
    found, _ = each
    row = next(row for row in found.rows if row.modality == "depth")
    partly = dataclasses.replace(row, mean=dataclasses.replace(row.mean, covered=dict.fromkeys(METRIC_KEYS, 1)))
    text = modality_table(dataclasses.replace(found, rows=(partly,))).to_text()
    assert "* solids with depth: the mean covers 1 of 2 classes for I-AUROC" in " ".join(text.split())
    assert text.splitlines()[6].count("*") == 8


@pytest.mark.parametrize(
    ("left", "told"),
    [
        (["cloth", "tiles"], "no class has several modalities"),
        (["rope", "tiles"], "no modality is in every sample of solids/rope"),
    ],
)
def test_data_without_a_class_for_such_a_table_are_told_why(small_shards, tmp_path, monkeypatch, left, told):
    whole = ShardSet.open([small_shards])
    partly = without(whole, "solids/rope", "depth")
    partly = without(partly, "solids/rope", "rgb", number=1)
    samples = tuple(sample for sample in partly.indexes[0].samples if sample.class_name in left)
    index = partly.indexes[0].model_copy(update={"samples": samples})
    monkeypatch.setattr(ShardSet, "open", lambda *_: ShardSet(whole.folders, [index], whole.cache))
    with pytest.raises(ValueError, match=f"--modalities each: {told}; evaluate without this option"):
        evaluate_each_modality(lambda **_: pytest.fail("evaluated"), [Path(small_shards)], "test", tmp_path)


def test_what_is_left_out_is_said_with_both_reasons(each):
    found = dataclasses.replace(each[0], left_out=("a/b",))
    assert found.notes[-1] == "left out, with one modality only or none that every sample has: a/b"
