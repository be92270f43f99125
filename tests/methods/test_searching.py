"""UniMMAD with a search: alone until it is fitted, then joined; trained, stopped and continued as UniMMAD is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import hand_made_shards
from launches import command, run, weights
from methods.test_level_search import TEST
from methods.test_memory_bank import SIZE, TRAIN, collect, tokens
from torch.nn import functional as F

from unimmad import Detector
from unimmad.checkpoint.folder import find_checkpoint, read_state
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.cli import export
from unimmad.config import TrainingSettings
from unimmad.methods.level_maps import harmonic_mean
from unimmad.methods.registry import METHODS
from unimmad.methods.searching import SearchedReconstruction, SearchingSettings, SearchingUniMMAD
from unimmad.model.growing import train_experts_alone
from unimmad.model.method import Method, StepFacts
from unimmad.model.unimmad import UniMMAD
from unimmad.training.grown_model import grown_model
from unimmad.training.growth import Growth

SMALL = {
    **{"image_size": SIZE, "backbone": "resnet10t", "backbone_weights": "none", "modality_slots": 2},
    **{"fcm_dim": 48, "bottleneck_dim": 64, "decoder_planes": (16, 16, 16), "decoder_blocks": (1, 1, 1)},
    **{"embed_dim": 16, "leaders": 4, "base_experts": 2, "search": {"patches": 40}},
}


def new_method() -> SearchingUniMMAD:
    torch.manual_seed(0)
    return SearchingUniMMAD(SearchingSettings.model_validate(SMALL)).eval()


def fitted() -> SearchingUniMMAD:
    method = new_method()
    method.usual_L.copy_(torch.tensor([0.5, 1.0, 2.0]))
    method.begin(0)
    collect(method, TRAIN)  # type: ignore[arg-type]
    method.finish(lambda given: given)
    return method


@torch.no_grad()
def test_until_it_is_fitted_the_reconstruction_scores_as_unimmads_does() -> None:
    method = new_method()
    plain = UniMMAD(method.settings)
    plain.load_state_dict({name: tensor for name, tensor in method.state_dict().items() if name != "usual_L"})
    plain.eval()
    assert torch.equal(method.maps(method(*tokens(TEST))), plain.maps(plain(*tokens(TEST))))
    assert "reconstruction alone" in method.modalities_joined
    assert "reconstruction alone" not in fitted().modalities_joined


@torch.no_grad()
def test_search_and_reconstruction_are_joined_as_written_plainly() -> None:
    method = fitted()
    output = method(*tokens(TEST), [each.class_name for each in TEST])
    assert isinstance(output, SearchedReconstruction)
    usual = (0.5, 1.0, 2.0)
    rebuilt = [distance / usual for distance, usual in zip(output.distances, usual, strict=True)]
    large = [
        F.interpolate(level[:, None], size=(SIZE, SIZE), mode="bilinear", align_corners=True)[:, 0]
        for level in (*output.ratios.levels, *rebuilt)
    ]
    of_tokens = 6 / sum(1 / level.clamp_min(0.05) for level in large)
    expected = torch.stack([of_tokens[:2].sum(0), of_tokens[2], of_tokens[3:].sum(0)])
    torch.testing.assert_close(method.maps(output), expected)
    teacher_maps = method.teacher(tokens(TEST)[0])
    means = [F.avg_pool2d(level, 3, 1, 1).permute(0, 2, 3, 1) for level in teacher_maps]
    of_first = [banks.scores(patches[:1], 0) for banks, patches in zip(method.search.banks, means, strict=True)]
    for ours, theirs in zip(output.ratios.levels, of_first, strict=True):
        torch.testing.assert_close(ours[:1], theirs)


@torch.no_grad()
def test_without_a_training_step_it_gives_what_the_search_gives() -> None:
    method = fitted()
    method.usual_L.zero_()
    output = method(*tokens(TEST))
    of_tokens = harmonic_mean(output.ratios.levels, SIZE)
    expected = torch.stack([of_tokens[:2].sum(0), of_tokens[2], of_tokens[3:].sum(0)])
    torch.testing.assert_close(method.maps(output), expected)


def test_the_usual_distance_is_that_of_all_ranks_tokens_and_moves_slowly() -> None:
    method = new_method().train()
    output = method(*tokens(TEST))
    means_L = torch.stack([distance.mean() for distance in output.distances]).detach()

    def with_another_rank(tensor: torch.Tensor) -> torch.Tensor:
        """One that has as many tokens, at three times the distance."""
        if len(tensor) != 4:
            return tensor
        return torch.cat([tensor[:-1] * 4, tensor[-1:] * 2])

    facts = StepFacts(torch.ones(5), TrainingSettings(), world_size=2, global_sum=with_another_rank)
    method.loss(output, facts)
    torch.testing.assert_close(method.usual_L, 2 * means_L)
    method.loss(output, StepFacts(torch.ones(5), TrainingSettings()))
    torch.testing.assert_close(method.usual_L, 1.95 * means_L)


@torch.no_grad()
def test_what_distances_are_divided_by_stays_where_experts_alone_learn() -> None:
    method = new_method()
    method.usual_L.copy_(torch.tensor([0.5, 1.0, 2.0]))
    train_experts_alone(method)
    method.train()
    before = {name: buffer.clone() for name, buffer in method.named_buffers()}
    method.loss(method(*tokens(TEST)), StepFacts(torch.ones(5), TrainingSettings()))
    for name, buffer in method.named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize("bank_per", ["class", "all"])
def test_what_can_t_get_banks_of_new_classes_is_refused_before_it_is_trained(bank_per) -> None:
    torch.manual_seed(0)
    search = {**SMALL["search"], "bank_per": bank_per}  # type: ignore[dict-item]
    method = SearchingUniMMAD(SearchingSettings.model_validate({**SMALL, "search": search})).eval()
    recipe: Any = SimpleNamespace(model=method.settings, training=TrainingSettings())
    growth, data = Growth(Path("old"), (), 0.0, 0.0), SimpleNamespace(new=("set/new",))

    def grown() -> Method:
        source = SimpleNamespace(recipe=recipe, model=method)
        return grown_model(source, recipe, growth, data, METHODS)  # type: ignore[arg-type]

    with pytest.raises(ValueError, match="old has no banks yet: let its training come to its end first"):
        grown()
    method.begin(0)
    collect(method, TRAIN)  # type: ignore[arg-type]
    method.finish(lambda given: given)
    if bank_per == "all":
        with pytest.raises(ValueError, match="one bank holds all classes"):
            grown()
    else:
        assert isinstance(grown(), SearchingUniMMAD)


@torch.no_grad()
def test_its_other_forms_give_the_same_maps() -> None:
    both = [each for each in TEST if len(each.slots) == 2]
    images_BMCHW = torch.stack([each.images_MCHW for each in both])
    expected_BHW = fitted().maps(fitted()(*tokens(both)))
    fixed = fitted().with_fixed_modalities((0, 1))
    torch.testing.assert_close(fixed(images_BMCHW), expected_BHW, rtol=1e-3, atol=1e-4)
    fast = fitted().inference_form(0)
    torch.testing.assert_close(fast.maps(fast(*tokens(both))), expected_BHW, rtol=1e-3, atol=1e-4)
    plain = fast(*tokens(both)).ratios.levels
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = fast(*tokens(both)).ratios.levels
    assert all(torch.equal(*pair) for pair in zip(under_autocast, plain, strict=True))


RECIPE = """
method: unimmad_search
model:
  {image_size: 64, backbone: resnet10t, backbone_weights: none, fcm_dim: 48, bottleneck_dim: 64,
   decoder_planes: [16, 16, 16], decoder_blocks: [1, 1, 1], embed_dim: 16, leaders: 4, base_experts: 2,
   search: {patches: 100}}
data: {workers: 0}
training: {global_batch: 2, steps: 3, schedule: step, learning_rate: 0.001, checkpoint_every: 1}
evaluation: {batch_size: 2, blur_sigma_at_256: 4}
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return hand_made_shards(tmp_path_factory.mktemp("shards") / "set", ["solids"])


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(RECIPE)
    return path


def trained(folder: Path, shards: Path, recipe: Path, *words: str, ranks: int = 1) -> Path:
    start = command("python" if ranks == 1 else "torchrun", ranks)
    given = ["--recipe", str(recipe), "--data", str(shards), "--output-dir", "run", *words]
    done = run([*start, *given], folder, threads=1)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, shards, recipe) -> Path:
    return trained(tmp_path_factory.mktemp("one"), shards, recipe)


def test_the_last_checkpoint_has_the_banks_and_those_before_do_not(undisturbed) -> None:
    steps = sorted((undisturbed / "checkpoints").glob("step_*"))
    counts = [len(read_state(step)["fitted"]["banks"]) for step in steps]
    assert counts == [0, 4], "two classes of two modalities"
    unfitted = load_checkpoint(steps[0]).model
    assert not unfitted.search.is_fitted
    assert not unfitted.looks_at_class, "thresholds of the reconstruction alone hold whatever the class"
    assert load_checkpoint(steps[1]).model.looks_at_class


def test_stopped_and_continued_it_is_the_same_to_the_last_bit(undisturbed, tmp_path, shards, recipe) -> None:
    """The run that is stopped after a step has banks, too; they are made again."""
    trained(tmp_path, shards, recipe, "--max-steps", "2")
    assert read_state(find_checkpoint(tmp_path / "run"))["fitted"]["banks"]
    ours, theirs = weights(trained(tmp_path, shards, recipe)), weights(undisturbed)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_without_a_step_it_is_the_search_alone_and_its_own_banks_are_not_taken_along(
    undisturbed, tmp_path, shards, recipe
) -> None:
    """The feature cache is on: samples that are fitted to are not those of a training step."""
    words = ["--max-steps", "0", "--init-from", str(undisturbed), "--set", "data.feature_cache_gb=0.01"]
    cache = ["--set", f"data.cache_folder={tmp_path / 'cache'}"]
    begun = weights(trained(tmp_path, shards, recipe, *words, *cache))
    assert not begun["usual_L"].any()
    theirs = weights(undisturbed)
    assert [name for name in theirs if name.startswith("search.") and not torch.equal(begun[name], theirs[name])] == []


def test_two_ranks_make_the_same_banks(undisturbed, tmp_path, shards, recipe) -> None:
    ours, theirs = weights(trained(tmp_path, shards, recipe, ranks=2)), weights(undisturbed)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if name.startswith("search.") and not torch.equal(ours[name], theirs[name])] == []
    torch.testing.assert_close(ours["usual_L"], theirs["usual_L"], rtol=1e-3, atol=0)


def test_exported_it_gives_the_detectors_scores_where_the_class_is_unknown(undisturbed, tmp_path, shards) -> None:
    target = tmp_path / "solids.onnx"
    words = ["--checkpoint", str(undisturbed), "--dataset", "solids", "--format", "onnx", "--target", str(target)]
    assert export.main(words) == 0
    generator = np.random.default_rng(7)
    images = {
        "rgb": generator.integers(0, 256, (48, 48, 3), dtype=np.uint8),
        "depth": generator.integers(20_000, 30_000, (48, 48), dtype=np.uint16),
    }
    of_checkpoint = Detector.from_checkpoint(undisturbed, data=[shards]).predict(images)
    of_export = Detector.open(target).predict(images)
    assert of_export.score == pytest.approx(of_checkpoint.score, rel=1e-4)
    np.testing.assert_allclose(of_export.map_HW, of_checkpoint.map_HW, rtol=1e-3, atol=1e-4)


def test_it_begins_with_the_weights_of_a_trained_unimmad(tmp_path, shards, recipe) -> None:
    plain = tmp_path / "plain.yaml"
    text = recipe.read_text().replace("unimmad_search", "unimmad").replace("search: {patches: 100}", "top_k: 2")
    plain.write_text(text.replace("steps: 3", "steps: 1"))
    first = trained(tmp_path, shards, plain).rename(tmp_path / "first")
    later = trained(tmp_path, shards, recipe, "--init-from", str(first), "--set", "training.learning_rate=1e-12")
    ours, theirs = weights(later), weights(first)
    assert ours["usual_L"].min() > 0
    assert read_state(find_checkpoint(later))["fitted"]["banks"]
    still = [name for name in theirs if torch.allclose(ours[name], theirs[name], rtol=0, atol=1e-9)]
    moved = [name for name in theirs if name not in still and not name.startswith("optimizer/")]
    assert all("running" in name or "batches" in name for name in moved), "statistics alone move at such a rate"
    (tmp_path / "run").rename(tmp_path / "second")
    start = [*command("python", 1), "--recipe", str(plain), "--data", str(shards), "--output-dir", "run"]
    refused = run([*start, "--init-from", str(tmp_path / "second")], tmp_path, threads=1)
    assert refused.returncode == 2
    assert "is of method 'unimmad_search', and recipe plain of unimmad" in refused.stderr
