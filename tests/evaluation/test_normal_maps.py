"""The scale of pictures' colours, of normal images that a fitted method has seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hand_made import hand_made_shards
from launches import command, run

from unimmad.checkpoint.folder import find_checkpoint
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.normal_maps import NormalMaps, NormalSet, joined_normal_maps, load_normal_maps
from unimmad.config import EvaluationSettings
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.sample import Sample, collate
from unimmad.evaluation.normal_maps import measure_normals
from unimmad.evaluation.scoring import score_on_device
from unimmad.model.anomaly_map import gaussian_blur, image_scores

CPU = torch.device("cpu")
SMALL = [
    *("--set", "model.backbone=resnet18", "--set", "model.backbone_weights=none", "--set", "model.image_size=64"),
    *("--set", "data.workers=0"),
]
BANK = ["--set", "model.patch_dim=64", "--set", "model.layer_dim=64", "--set", "model.coreset=none"]
WHOLE = ["--set", "model.whole_image=true"]
TRAINED = [
    *("--set", "training.epochs=2", "--set", "training.warmup_steps=1", "--set", "training.global_batch=2"),
    *("--set", "model.embed_dim=8", "--set", "model.search.drawn_on=0"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a calibration split; one class has a single training image."""
    folder = hand_made_shards(tmp_path_factory.mktemp("shards") / "set", ["solids"])
    index = json.loads((folder / "index.json").read_text())
    of_train = [sample for sample in index["samples"] if sample["split"] == "train"]
    alone = of_train[-1]["class_name"]
    for sample in [one for one in of_train if one["class_name"] == alone][1:]:
        sample["split"] = "test"
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def fitted(folder: Path, shards: Path, method: str, settings: list[str]) -> Path:
    words = ["--recipe", method, *SMALL, *settings, "--data", str(shards), "--output-dir", str(folder)]
    done = run([*command("python", 1), *words], folder.parent, threads=1)
    assert done.returncode == 0, done.stderr[-3000:]
    return find_checkpoint(folder)


def test_a_bank_scores_its_own_images_by_the_others(tmp_path, shards):
    """Held to distances to all patches of the other images, one by one."""
    checkpoint = fitted(tmp_path / "run", shards, "memory_bank", BANK)
    found = load_normal_maps(checkpoint)
    assert found is not None
    opened, loaded = ShardSet.open([shards]), load_checkpoint(checkpoint)
    counts = {name: len(refs) for name, refs in opened.classes("train").items()}
    (several,) = (name for name, count in counts.items() if count > 1)
    assert sorted(counts.values())[0] == 1
    assert [one.class_name for one in found.sets] == [several], "a single image has no other to be compared with"
    (own,) = found.sets
    samples = [opened.read(ref, 64) for ref in opened.classes("train")[several]]
    assert own.images == len(samples)
    scores = [expected_score(loaded.model, loaded.recipe.evaluation, sample, samples) for sample in samples]
    assert own.highest == pytest.approx(max(scores), rel=1e-3)
    assert own.typical == pytest.approx(np.median(scores), rel=1e-3)
    with torch.inference_mode():
        plain = score_on_device(loaded.model, collate(samples), loaded.recipe.evaluation, CPU, "fp32").scores_B
    assert own.typical > 100 * plain.max().item(), "as they are, their own patches are in the bank"


def expected_score(model, settings: EvaluationSettings, sample: Sample, samples: list[Sample]) -> float:
    others = [other for other in samples if other.key != sample.key]
    maps = []
    for place in range(len(sample.slots)):
        patches_hwD = model.describe_patches(sample.images_MCHW[[place]])[0]
        bank_ND = torch.cat([model.describe_patches(other.images_MCHW[[place]])[0].flatten(0, 1) for other in others])
        distances_hw = (patches_hwD[:, :, None] - bank_ND).square().sum(-1).amin(-1)
        maps.append(model.at_image_size(distances_hw[None])[0])
    map_1HW = torch.stack(maps).square().sum(0, keepdim=True).sqrt()
    blurred_1HW = gaussian_blur(map_1HW, *settings.blur(model.image_size))
    return image_scores(blurred_1HW, settings.top_share, settings.score_pool).item()


@pytest.mark.parametrize(("method", "settings"), [("level_search", WHOLE), ("best", TRAINED)])
def test_a_search_scores_its_own_images_as_new_ones(tmp_path, shards, method, settings):
    """What is usual between images is about 1 to it, and next to nothing where an image is in a bank."""
    checkpoint = fitted(tmp_path / "run", shards, method, settings)
    found = load_normal_maps(checkpoint)
    assert found is not None
    (own,) = found.sets
    tokens = len(own.modalities)
    assert 0.3 * tokens < own.usual < 3 * tokens
    assert own.highest >= own.typical > own.usual
    loaded, opened = load_checkpoint(checkpoint), ShardSet.open([shards])
    batch = collate([opened.read(ref, 64) for ref in opened.classes("train")[own.class_name]])
    with torch.inference_mode():
        seen = score_on_device(loaded.model, batch, loaded.recipe.evaluation, CPU, "fp32").maps_BHW
    assert seen.median().item() < 0.5 * own.usual


@pytest.mark.parametrize(("method", "settings"), [("memory_bank", BANK), ("level_search", WHOLE)])
def test_banks_of_all_classes_are_left_an_image_out_too(tmp_path, shards, method, settings):
    """Of a class with a single image nothing is said: others' images are not what is usual for it."""
    checkpoint = fitted(tmp_path / "run", shards, method, [*settings, "--set", "model.bank_per=all"])
    found, loaded = load_normal_maps(checkpoint), load_checkpoint(checkpoint)
    assert found is not None
    opened = ShardSet.open([shards])
    ((several, refs),) = ((name, refs) for name, refs in opened.classes("train").items() if len(refs) > 1)
    assert [(one.class_name, one.images) for one in found.sets] == [(several, len(refs))]
    batch = collate([opened.read(ref, 64) for ref in refs])
    with torch.inference_mode():
        seen = score_on_device(loaded.model, batch, loaded.recipe.evaluation, CPU, "fp32").scores_B
    assert found.sets[0].typical > 2 * seen.max().item(), "as they are, their own patches are in the banks"


def test_which_images_banks_hold_is_known_to_what_made_them_alone(tmp_path, shards):
    loaded = load_checkpoint(fitted(tmp_path / "run", shards, "level_search", WHOLE))
    assert measure_normals(loaded, ShardSet.open([shards]), CPU, loaded.model) is None
    assert measure_normals(loaded, ShardSet.open([shards]), CPU) is None


def test_what_a_grown_checkpoint_takes_over_is_of_other_classes():
    def one(name: str, usual: float) -> NormalSet:
        return NormalSet(class_name=name, modalities=["rgb"], images=1, usual=usual, highest=2.0)

    first = NormalMaps(split="train", sets=[one("a/new", 1.0), one("a/both", 1.0)])
    older = NormalMaps(split="calibration", sets=[one("a/both", 3.0), one("a/old", 3.0)])
    joined = joined_normal_maps(first, older)
    assert {found.class_name: found.usual for found in joined.sets} == {"a/new": 1.0, "a/both": 1.0, "a/old": 3.0}
    assert joined_normal_maps(first, None) == first
