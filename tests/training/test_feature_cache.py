"""Features of a frozen teacher, kept on disk: the same numbers, whatever is kept, and no second pass."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from unimmad.config import load_recipe
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.sample import Batch, collate
from unimmad.methods.registry import METHOD_SETTINGS, build_method, new_model
from unimmad.model.method import Method, StepFacts
from unimmad.training.feature_cache import FeatureCache, fingerprint

TINY = ["model.image_size=64", "model.backbone=resnet18", "model.backbone_weights=none"]
SMALL_VIT = [
    *("model.image_size=64", "model.backbone=vit_tiny_patch16_224", "model.backbone_weights=none"),
    *("model.blocks=[2,4]", "model.groups=[[0],[1]]"),
]
RECIPES = {"tiny": [], "rd": TINY, "dinomaly": [*SMALL_VIT, "model.dropout=0"]}
ROOM = 10**9


@pytest.fixture(scope="module")
def batch(parity_shards: Path) -> Batch:
    shards = ShardSet.open([parity_shards])
    refs = [refs[0] for refs in shards.classes("train").values()][:3]
    return collate([shards.read(ref, 64) for ref in refs])


@pytest.fixture(scope="module", params=list(RECIPES))
def method(request: pytest.FixtureRequest) -> Method:
    made, _ = new_model(load_recipe(request.param, RECIPES[request.param], METHOD_SETTINGS), seed=0)
    made.freeze_teacher()
    return made


def loss_of(method: Method, batch: Batch, cache: FeatureCache | None = None) -> torch.Tensor:
    facts = StepFacts(torch.ones(len(batch.images_TCHW)), load_recipe("tiny").training)
    copied = copy.deepcopy(method)
    if cache is None:
        return copied.loss(copied(batch.images_TCHW, batch.tokens_per_sample, batch.slot_of_token_T), facts).total
    cache.attach(copied)
    with cache.of(batch):
        output = copied(batch.images_TCHW, batch.tokens_per_sample, batch.slot_of_token_T)
    return copied.loss(output, facts).total


def test_the_loss_is_the_plain_one_and_kept_features_give_the_same_bits(method, batch, tmp_path):
    plain = loss_of(method, batch)
    first = loss_of(method, batch, FeatureCache(tmp_path, ROOM))
    torch.testing.assert_close(first, plain, rtol=1e-5, atol=1e-6)
    assert len(list(tmp_path.rglob("*.safetensors"))) == len(batch.images_TCHW)
    again = loss_of(method, batch, FeatureCache(tmp_path, 0))
    without_room = loss_of(method, batch, FeatureCache(tmp_path / "other", 0))
    assert again.item() == first.item() == without_room.item()
    assert not list((tmp_path / "other").rglob("*.safetensors"))


def test_what_is_kept_is_not_computed_and_what_is_damaged_is(method, batch, tmp_path, monkeypatch):
    first = loss_of(method, batch, FeatureCache(tmp_path, ROOM))
    calls = []

    def counting(compute, images_TCHW):
        calls.append(len(images_TCHW))
        return compute(images_TCHW)

    plain = FeatureCache._made
    monkeypatch.setattr(
        FeatureCache,
        "_made",
        lambda self, name, compute, image: plain(self, name, lambda x: counting(compute, x), image),
    )
    assert loss_of(method, batch, FeatureCache(tmp_path, ROOM)).item() == first.item()
    assert calls == []
    damaged = next(iter(tmp_path.rglob("*.safetensors")))
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert loss_of(method, batch, FeatureCache(tmp_path, ROOM)).item() == first.item()
    assert calls == [1]


def test_the_limit_counts_what_is_there(method, batch, tmp_path):
    loss_of(method, batch, FeatureCache(tmp_path, ROOM))
    sizes = [file.stat().st_size for file in tmp_path.rglob("*.safetensors")]
    other = tmp_path / "less"
    loss_of(method, batch, FeatureCache(other, max(sizes) * 2))
    assert 0 < len(list(other.rglob("*.safetensors"))) <= 2


def test_a_method_without_frozen_features_is_refused(tmp_path):
    bank = build_method(load_recipe("memory_bank", TINY, METHOD_SETTINGS))
    with pytest.raises(ValueError, match=r"data\.feature_cache_gb: MemoryBank has no features"):
        FeatureCache(tmp_path, ROOM).attach(bank)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"the cache of features .*data\.feature_cache_gb to 0"):
        FeatureCache(tmp_path / "file" / "below", ROOM)


def test_the_fingerprint_follows_weights_and_facts():
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert fingerprint(first, "a") == fingerprint(copy.deepcopy(first), "a")
    assert len({fingerprint(first, "a"), fingerprint(first, "b"), fingerprint(second, "a")}) == 3
