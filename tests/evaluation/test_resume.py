"""An interrupted evaluation continues after its last finished class, where nothing has changed."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading

import numpy as np
import pytest
import torch
from hand_made import hand_made_checkpoint

from unimmad.checkpoint.loading import load_checkpoint
from unimmad.config import load_recipe
from unimmad.data.reading.shard_set import ShardSet
from unimmad.evaluation import evaluate as evaluate_module
from unimmad.evaluation import run
from unimmad.evaluation.evaluate import evaluate_checkpoint
from unimmad.evaluation.resume import FOLDER, PartialResults, evaluation_fingerprint

CPU = torch.device("cpu")


class StoppedError(Exception):
    pass


@pytest.fixture
def scored_samples(monkeypatch):
    """Keys of the samples that go through the model, as they do."""
    seen: list[str] = []
    original = run.score_samples

    def watched(model, batch, *rest):
        seen.extend(sample.key for sample in batch.samples)
        return original(model, batch, *rest)

    monkeypatch.setattr(run, "score_samples", watched)
    return seen


@pytest.fixture
def kept(monkeypatch):
    """Instead of scoring, the names of the classes that an evaluation finds finished."""
    names: list[str] = []

    def noted(*_, finished, **__):
        names.extend(finished)
        raise StoppedError

    monkeypatch.setattr(evaluate_module, "evaluate_classes", noted)
    return names


def evaluated(checkpoint, data, output, progress=False, **options):
    return evaluate_checkpoint(checkpoint, [data], output, device=CPU, workers=0, progress=progress, **options)


def begun(*arguments, **options):
    """With ``kept``: evaluate up to where scoring would begin."""
    with pytest.raises(StoppedError):
        evaluated(*arguments, **options)


def interrupt(checkpoint, data, output, after, **options):
    """Evaluate, and stop when ``after`` classes are finished."""
    save = PartialResults.save

    def saved_then_stopped(self, scored):
        save(self, scored)
        if len(list(self.folder.iterdir())) == after:
            raise StoppedError

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PartialResults, "save", saved_then_stopped)
        with pytest.raises(StoppedError):
            evaluated(checkpoint, data, output, **options)
    return output


def with_settings(checkpoint, *overrides):
    return dataclasses.replace(checkpoint, recipe=load_recipe("tiny", overrides))


def _stop(self, scored):
    raise StoppedError


@pytest.fixture(scope="module")
def plain(checkpoint):
    """Without pictures, which take longest."""
    return with_settings(checkpoint, "evaluation.pictures_per_class=0")


@pytest.fixture(scope="module")
def stopped(plain, small_shards, tmp_path_factory):
    """Two of four classes are finished."""
    return interrupt(plain, small_shards, tmp_path_factory.mktemp("stopped") / "report", after=2)


@pytest.fixture
def output(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "report")


def test_a_stopped_evaluation_leaves_no_thread_behind(plain, small_shards, tmp_path):
    before = set(threading.enumerate())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PartialResults, "save", _stop)
        with pytest.raises(StoppedError) as stopped:
            evaluated(plain, small_shards, tmp_path)
    assert stopped.traceback, "while the error is held, so are the frames that it passed through"
    assert set(threading.enumerate()) == before


def test_finished_classes_are_skipped_and_the_report_is_the_same(
    plain, small_shards, output, tmp_path, scored_samples, capsys
):
    whole = evaluated(plain, small_shards, tmp_path / "whole")
    everything = list(scored_samples)
    scored_samples.clear()
    assert not (output / "report.json").exists()
    resumed = evaluated(plain, small_shards, output, progress=True)
    assert scored_samples == everything[6:]
    said = "2 of 4 classes were finished by an interrupted evaluation: solids/cookie, solids/rope"
    assert said in capsys.readouterr().err
    assert resumed.report == whole.report
    for ours, theirs in zip(resumed.scored, whole.scored, strict=True):
        np.testing.assert_array_equal(ours.image_scores, theirs.image_scores)
        assert (ours.keys, ours.defects) == (theirs.keys, theirs.defects)
        np.testing.assert_array_equal(ours.usage.counts_MGL, theirs.usage.counts_MGL)
        np.testing.assert_array_equal(ours.curves.pro, theirs.curves.pro)
    assert (output / "image_scores.csv").read_bytes() == (tmp_path / "whole" / "image_scores.csv").read_bytes()
    assert sorted(os.listdir(output)) == sorted(os.listdir(tmp_path / "whole"))


def test_all_finished_needs_no_scoring_but_pictures(checkpoint, plain, small_shards, tmp_path, scored_samples):
    interrupt(plain, small_shards, tmp_path, after=4)
    scored_samples.clear()
    one_picture = with_settings(checkpoint, "evaluation.pictures_per_class=1")
    resumed = evaluated(one_picture, small_shards, tmp_path)
    assert len(resumed.report.classes) == len(list((tmp_path / "pictures").iterdir())) == 4
    assert scored_samples == []


def test_the_batch_size_changes_no_number_so_it_goes_on(checkpoint, small_shards, output, kept):
    begun(with_settings(checkpoint, "evaluation.batch_size=1"), small_shards, output)
    assert kept == ["solids/cookie", "solids/rope"]


def test_no_resume_begins_again(plain, small_shards, output, kept):
    begun(plain, small_shards, output, no_resume=True)
    assert kept == []


@pytest.mark.parametrize("options", [{"mask_resize": "bilinear"}, {"precision": "bf16"}, {"modalities": ["rgb", "t1"]}])
def test_an_option_that_changes_a_number_begins_again(plain, small_shards, output, kept, options):
    begun(plain, small_shards, output, **options)
    assert kept == []


def test_other_settings_or_weights_begin_again(checkpoint, small_shards, output, kept, tmp_path):
    folder, _ = hand_made_checkpoint(tmp_path / "other", checkpoint.recipe, [small_shards], step=99)
    other_weights = load_checkpoint(folder)
    for changed in (with_settings(checkpoint, "evaluation.blur_sigma=2"), other_weights):
        copy = shutil.copytree(output, output.parent / f"copy{id(changed)}")
        begun(changed, small_shards, copy)
    assert kept == []


def test_a_damaged_leftover_is_passed_over(plain, small_shards, output, kept):
    cut, other = sorted((output / FOLDER).iterdir())
    whole = json.loads(cut.read_text())
    for leftover in (cut.read_text()[:50], json.dumps({**whole, "usage": {}})):
        cut.write_text(leftover)
        other.write_text("[]")
        begun(plain, small_shards, output)
    assert kept == []


def test_a_class_that_lost_samples_is_scored_again(plain, small_shards, tmp_path, scored_samples):
    """What was left out of it must be in the report, too."""
    data = shutil.copytree(small_shards, tmp_path / "data")
    index = ShardSet.open([data]).indexes[0]
    sample = index.classes("test")["solids/cookie"][0]
    with (data / index.shards[sample.shard].name).open("r+b") as file:
        file.seek(next(iter(sample.images.values())).offset)
        file.write(b"nothing")

    interrupt(plain, data, tmp_path / "report", after=1, on_error="skip")
    scored_samples.clear()
    resumed = evaluated(plain, data, tmp_path / "report", on_error="skip")
    assert len(scored_samples) == 2 + 3 + 3
    assert resumed.report.header["left out"].startswith("1 samples could not be read")


def test_the_fingerprint_goes_by_the_data(checkpoint, small_shards, tmp_path):
    shards = ShardSet.open([small_shards])
    index = shards.indexes[0]
    changed = index.model_copy(
        update={"shards": tuple(shard.model_copy(update={"sha256": "0" * 64}) for shard in index.shards)}
    )
    other = ShardSet(shards.folders, [changed], shards.cache)
    first, same, second = (evaluation_fingerprint(checkpoint.weights_digest, s, {}) for s in (shards, shards, other))
    assert first == same != second


def test_a_partial_file_is_readable_json(stopped):
    assert sorted(os.listdir(stopped / FOLDER)) == ["solids-cookie.json", "solids-rope.json"]
    content = json.loads((stopped / FOLDER / "solids-cookie.json").read_text())
    assert content["class"]["class"] == "cookie"
    assert len(content["image_scores"]) == 3
