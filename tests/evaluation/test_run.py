"""The run over a test split: what is scored, and that how it is batched changes nothing."""

from __future__ import annotations

import threading
from functools import partial

import numpy as np
import pytest
import torch
from hand_made import maps_of

from unimmad.config import EvaluationSettings, load_recipe
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.sample import collate
from unimmad.evaluation import run
from unimmad.evaluation.run import evaluate_classes
from unimmad.evaluation.scoring import default_precision
from unimmad.evaluation.shared_drawing import chosen_samples, sample_picture
from unimmad.methods.registry import new_model
from unimmad.metrics.metrics import METRIC_KEYS, MetricAccumulator, evaluate
from unimmad.model.anomaly_map import gaussian_blur, image_scores
from unimmad.report.figures import SamplePicture
from unimmad.report.scored_class import ScoredClass

CLASSES = ["cookie", "rope", "brain_upper", "brain_ventricles"]
CLOSE = 1e-4
"""Of metrics: rounding lets a few of a class's 12 288 pixels change places in the order that metrics go by."""
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shards(small_shards) -> ShardSet:
    return ShardSet.open([small_shards])


def settings(**changes: object) -> EvaluationSettings:
    return load_recipe("tiny").evaluation.model_copy(update=changes)


def scored(checkpoint, shards, split="test", **changes) -> list[ScoredClass]:
    return list(
        evaluate_classes(checkpoint.model, shards, split, settings(**changes), device=CPU, workers=0, progress=False)
    )


def shown(checkpoint, shards, scored_class, count=2) -> list[SamplePicture]:
    refs = shards.classes("test")[scored_class.class_name]
    draw = partial(sample_picture, checkpoint.model, shards, settings=settings(), device=CPU)
    return chosen_samples(scored_class, refs, count, draw)


@pytest.fixture(scope="module")
def one_by_one(checkpoint, shards) -> list[ScoredClass]:
    return scored(checkpoint, shards, batch_size=1)


def test_every_class_comes_with_its_set_field_and_counts(one_by_one):
    results = [scored_class.result for scored_class in one_by_one]
    assert [result.class_name for result in results] == CLASSES
    assert [result.dataset for result in results] == ["solids", "solids", "brains", "brains"]
    assert [result.field for result in results] == ["industry", "industry", "medicine", "medicine"]
    assert {(result.normal, result.anomalous) for result in results} == {(1, 2)}
    for result in results:
        assert set(result.metrics) == set(METRIC_KEYS)
        assert all(value is not None and 0 <= value <= 1 for value in result.metrics.values())


@pytest.mark.parametrize("batch_size", [2, 4])
def test_the_batch_size_changes_no_number(checkpoint, shards, one_by_one, batch_size):
    together = scored(checkpoint, shards, batch_size=batch_size)
    for ours, theirs in zip(together, one_by_one, strict=True):
        assert ours.result.class_name == theirs.result.class_name
        assert ours.result.metrics == pytest.approx(theirs.result.metrics, abs=CLOSE)
        mine, other = shown(checkpoint, shards, ours), shown(checkpoint, shards, theirs)
        assert [picture.key for picture in mine] == [picture.key for picture in other]


def test_the_metrics_are_those_of_the_samples_read_and_scored_by_hand(checkpoint, shards, one_by_one):
    model, rules = checkpoint.model.eval(), settings()
    for scored_class in one_by_one:
        result = scored_class.result
        maps, masks, scores, labels = [], [], [], []
        for ref in shards.classes("test")[f"{result.dataset}/{result.class_name}"]:
            sample = shards.read(ref, 64)
            tokens = len(sample.slots)
            with torch.no_grad():
                output = model(sample.images_MCHW, (tokens,), torch.tensor(sample.slots))
                map_BHW = gaussian_blur(model.maps(output), *rules.blur(64))
            maps.append(map_BHW[0].numpy())
            masks.append(sample.mask_HW.numpy())
            scores.append(image_scores(map_BHW, rules.top_share).item())
            labels.append(int(ref.entry.anomalous))
        assert result.metrics == pytest.approx(evaluate(maps, masks, scores, labels), abs=CLOSE)


def test_maps_are_blurred_and_the_image_score_is_the_mean_of_the_largest_values(checkpoint, shards):
    refs = shards.classes("test")["solids/cookie"]
    batch = collate([shards.read(ref, 64) for ref in refs])
    sharp_BHW, sharp_scores = maps_of(checkpoint.model, batch, settings(blur_sigma=0.0, top_share=0.01))
    blurred_BHW, _ = maps_of(checkpoint.model, batch, settings())
    assert sharp_BHW.shape == (3, 64, 64)
    assert sharp_BHW.dtype == sharp_scores.dtype == torch.float32
    torch.testing.assert_close(blurred_BHW, gaussian_blur(sharp_BHW, 5, 1.0))
    assert not torch.allclose(blurred_BHW, sharp_BHW, atol=1e-3)
    expected = sharp_BHW.flatten(1).sort(dim=1, descending=True).values[:, :40].mean(dim=1)
    torch.testing.assert_close(sharp_scores, expected)


def test_a_blur_that_follows_the_image_size_is_a_quarter_as_wide_at_a_quarter_of_256(checkpoint, shards):
    batch = collate([shards.read(ref, 64) for ref in shards.classes("test")["solids/cookie"]])
    sharp_BHW, _ = maps_of(checkpoint.model, batch, EvaluationSettings(blur_sigma=0))
    blurred_BHW, scores_B = maps_of(checkpoint.model, batch, EvaluationSettings(blur_sigma_at_256=4))
    torch.testing.assert_close(blurred_BHW, gaussian_blur(sharp_BHW, 9, 1.0))
    torch.testing.assert_close(scores_B, image_scores(blurred_BHW, 0.001))


def test_scores_keys_and_labels_of_every_sample_come_with_the_class(checkpoint, shards, one_by_one):
    for scored_class in one_by_one:
        refs = shards.classes("test")[scored_class.class_name]
        assert scored_class.keys == tuple(ref.entry.key for ref in refs)
        assert scored_class.defects == tuple(ref.entry.defect for ref in refs)
        assert scored_class.labels.tolist() == [ref.entry.anomalous for ref in refs]
        assert scored_class.image_scores.dtype == np.float64
        batch = collate([shards.read(ref, 64) for ref in refs])
        _, scores_B = maps_of(checkpoint.model, batch, settings())
        np.testing.assert_allclose(scored_class.image_scores, scores_B.numpy(), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [2, 3])
def test_image_scores_are_the_same_at_any_batch_size(checkpoint, shards, one_by_one, batch_size):
    together = scored(checkpoint, shards, batch_size=batch_size)
    for ours, theirs in zip(together, one_by_one, strict=True):
        np.testing.assert_allclose(ours.image_scores, theirs.image_scores, rtol=1e-5)


def test_the_metrics_are_collected_in_another_thread(checkpoint, shards, monkeypatch):
    threads = set()
    add = MetricAccumulator.add

    def noted(self, *image, **name):
        threads.add(threading.current_thread().name)
        add(self, *image, **name)

    monkeypatch.setattr(MetricAccumulator, "add", noted)
    scored(checkpoint, shards)
    assert {name.partition("_")[0] for name in threads} == {"metrics"}


@pytest.mark.parametrize(("value", "batch_size"), [("nan", 1), ("nan", 8), ("inf", 8), ("-inf", 8)])
def test_what_is_not_finite_in_any_batch_stops_the_run_and_names_the_sample(
    checkpoint, shards, monkeypatch, value, batch_size
):
    broken = shards.classes("test")["solids/rope"][1].entry.key
    original = run.score_samples

    def with_nan(model, batch, *rest):
        batch, scored = original(model, batch, *rest)
        maps_BHW = scored.maps_BHW.clone()
        for place, sample in enumerate(batch.samples):
            if sample.key == broken:
                maps_BHW[place, 3, 4] = float(value)
        return batch, scored._replace(maps_BHW=maps_BHW)

    monkeypatch.setattr(run, "score_samples", with_nan)
    before = set(threading.enumerate())
    with pytest.raises(ValueError, match=rf"^solids/rope {broken}: 1 of 4096 values .* NaN or infinite"):
        scored(checkpoint, shards, batch_size=batch_size)
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("metrics")]


def test_bf16_gives_close_fp32_maps(checkpoint, shards):
    batch = collate([shards.read(ref, 64) for ref in shards.classes("test")["solids/cookie"]])
    exact_BHW, exact_B = maps_of(checkpoint.model, batch, settings())
    found_BHW, found_B = maps_of(checkpoint.model, batch, settings(), "bf16")
    assert found_BHW.dtype == found_B.dtype == torch.float32
    assert 0 < (found_B - exact_B).abs().max() < 0.05 * exact_B.max()
    assert (found_BHW - exact_BHW).abs().max() < 0.1 * exact_BHW.max()


def test_scoring_leaves_the_tf32_settings_as_they_were(checkpoint, shards):
    batch = collate([shards.read(shards.classes("test")["solids/cookie"][0], 64)])
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    maps_of(checkpoint.model, batch, settings())
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_the_default_precision_on_a_cpu_is_fp32():
    assert default_precision(CPU) == "fp32"


def test_pictures_show_an_anomaly_and_a_normal_sample_with_their_modalities_and_masks(checkpoint, shards, one_by_one):
    for scored_class in one_by_one:
        defective, normal = shown(checkpoint, shards, scored_class)
        assert defective.defect != "good"
        assert defective.mask_HW.any()
        assert normal.defect == "good"
        names = [name for name, _ in defective.images]
        brain = "brain" in scored_class.result.class_name
        assert names == (["t1", "t1ce", "t2", "flair"] if brain else ["rgb", "depth"])
        assert defective.map_HW.shape == (128, 128)  # the stored images' own size


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (9, 3)])
def test_as_many_pictures_as_asked_or_there_are(checkpoint, shards, one_by_one, count, expected):
    for scored_class in one_by_one:
        assert len(shown(checkpoint, shards, scored_class, count)) == expected


def test_the_training_split_has_normal_samples_only_and_most_metrics_undefined(checkpoint, shards):
    results = [scored_class.result for scored_class in scored(checkpoint, shards, "train")]
    assert [(result.normal, result.anomalous) for result in results] == [(2, 0)] * 4
    assert {value for result in results for value in result.metrics.values()} == {None}


def test_data_with_more_slots_than_the_model_are_refused(shards):
    model, _ = new_model(load_recipe("tiny", ["model.modality_slots=2"]), seed=0)
    with pytest.raises(ValueError, match="use modality slot 3; the model has slots 0 to 1 only"):
        next(evaluate_classes(model, shards, "test", settings(), device=CPU, workers=0, progress=False))


def test_failures_are_pictured_first_and_say_why(checkpoint, shards, one_by_one):
    for scored_class in one_by_one:
        pictures = shown(checkpoint, shards, scored_class, 3)
        notes = [picture.note for picture in pictures]
        assert [note.partition(",")[0] for note in notes] == [
            "highest-scoring normal",
            "lowest-scoring anomaly",
            "ordinary anomaly",
        ]
        score_of = dict(zip(scored_class.keys, scored_class.image_scores, strict=True))
        for picture in pictures:
            assert picture.score == pytest.approx(score_of[picture.key], rel=1e-5)
        anomalous = scored_class.image_scores[scored_class.labels]
        assert pictures[1].score == pytest.approx(anomalous.min(), rel=1e-5)


def test_the_routing_of_every_token_is_counted(checkpoint, shards, one_by_one):
    top_k = load_recipe("tiny").model.top_k
    together = scored(checkpoint, shards, batch_size=4)
    for scored_class, other in zip(one_by_one, together, strict=True):
        usage = scored_class.usage
        assert (usage.dataset, usage.class_name) == (scored_class.result.dataset, scored_class.result.class_name)
        assert usage.tokens_M.tolist() == [3] * len(usage.modalities)
        assert set(usage.counts_MGL.sum(axis=2).reshape(-1).tolist()) == {3 * top_k}
        np.testing.assert_array_equal(usage.counts_MGL, other.usage.counts_MGL)


def test_a_model_in_training_mode_is_scored_in_eval_mode(checkpoint, shards, one_by_one):
    checkpoint.model.train()
    assert scored(checkpoint, shards)[0].result.metrics == pytest.approx(one_by_one[0].result.metrics, abs=CLOSE)
