"""``unimmad grow`` from a checkpoint to the next: what moved, what is said of it, and how it is continued."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import hand_made_checkpoint, hand_made_shards, take_digests_again
from launches import CONFIGS, command, run, weights

from unimmad import Detector
from unimmad.checkpoint.digests import verify_checkpoint
from unimmad.checkpoint.folder import find_checkpoint, read_state
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.normal_maps import load_normal_maps
from unimmad.checkpoint.trained_on import TrainedOn
from unimmad.config import load_recipe
from unimmad.data.reading.shard_set import ShardSet
from unimmad.methods import discriminator
from unimmad.model.growing import is_new
from unimmad.parallel.world import World
from unimmad.training.arguments import parse_arguments
from unimmad.training.grow_arguments import parse_grow_arguments
from unimmad.training.run import train

ALONE = World(0, 1, 0, torch.device("cpu"))
WORKER = Path(__file__).with_name("growing_worker.py")
SMALL = ["--set", "model.image_size=64", "--set", "model.backbone_weights=none", "--set", "data.workers=0"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sets")
    return {name: hand_made_shards(folder / name, [name]) for name in ("materials", "solids")}


@pytest.fixture(scope="module")
def base(tmp_path_factory, sets) -> Path:
    """An untrained model that says it was trained on ``materials``."""
    shards = ShardSet.open([sets["materials"]])
    classes = {name: [ref.entry for ref in refs] for name, refs in shards.classes("train").items()}
    recipe = load_recipe("tiny", ["model.image_size=32"])
    folder = tmp_path_factory.mktemp("base") / "run"
    hand_made_checkpoint(folder, recipe, [sets["materials"]], trained_on=TrainedOn.of(shards.datasets, classes))
    return folder


@pytest.fixture(scope="module")
def grown(tmp_path_factory, base, sets) -> Path:
    folder = tmp_path_factory.mktemp("grown")
    done = run([sys.executable, str(WORKER), str(base), str(sets["solids"]), str(folder)], folder, threads=1)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.long
def test_gates_and_leaders_alone_are_other_than_before_and_the_checkpoint_opens_everywhere(base, grown):
    before, after = weights(base), weights(grown / "whole")
    changed = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert changed
    assert all(".routed." in name for name in changed)
    old = ~torch.tensor(is_new(8, 2))
    for name in changed:
        moved = (after[name][old] - before[name]).abs().max()
        assert 0 < moved < 0.01 or name.endswith("logits_LNE"), "two steps of Adam"
    optimised = {name.split("/", 2)[2] for name in after if name.startswith("optimizer/")}
    assert optimised == changed
    verify_checkpoint(find_checkpoint(grown / "whole"))
    loaded = load_checkpoint(find_checkpoint(grown / "whole"))
    assert loaded.recipe.model.leaders == 10
    assert loaded.trained_on is not None
    assert loaded.trained_on.classes[-1].startswith("solids/")
    detector = Detector.from_checkpoint(grown / "whole")
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    found = detector.predict({"rgb": pixels}, class_name="materials/nut")
    assert np.isfinite(found.score)


@pytest.mark.long
def test_the_report_has_old_classes_before_and_after_and_new_ones(base, grown):
    entry = json.loads((grown / "whole" / "forgetting.json").read_text())
    assert {name for name, found in entry["classes"].items() if found["new"]} == {"solids/cookie", "solids/rope"}
    old = {name: found for name, found in entry["classes"].items() if not found["new"]}
    assert len(old) == 3
    for name, found in old.items():
        assert entry["lost"][name] == found["before"]["I-AUROC"] - found["after"]["I-AUROC"]
    assert entry["mean_forgetting"] == pytest.approx(sum(entry["lost"].values()) / 3)
    assert entry["replayed_images"] == 3, "one a class at least"
    assert 0 < entry["trained_parameters"] < 0.1 * entry["parameters"]
    assert entry["minutes"] > 0
    text = (grown / "whole" / "forgetting.txt").read_text()
    assert all(name in text for name in entry["classes"])


@pytest.mark.long
def test_a_run_that_is_continued_is_the_one_that_was_not_interrupted_bit_for_bit(grown):
    whole, parts = weights(grown / "whole"), weights(grown / "parts")
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    states = [read_state(find_checkpoint(grown / name)) for name in ("whole", "parts")]
    assert [state["finished"] for state in states] == [True, True]
    assert states[0]["growth"] == states[1]["growth"]


@pytest.mark.long
def test_with_distillation_decay_and_a_bank_of_their_own_too_and_old_base_kernels_stay(base, grown):
    whole, parts, before = (weights(folder) for folder in (grown / "bank_whole", grown / "bank_parts", base))
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    banks = [name for name in before if name.endswith("kernels_GNEEkk")]
    assert banks
    assert [name for name in banks if not torch.equal(whole[name][:1], before[name])] == []
    assert any(not torch.equal(whole[name][1:], before[name]) for name in banks)


@pytest.mark.long
def test_a_class_that_lost_too_much_is_named_and_the_checkpoint_not_finished(grown):
    said = (grown / "refused" / "error.txt").read_text()
    assert (
        "more than --max-forgetting 0.02 of their I-AUROC: materials/nut 0.5000; the checkpoint is not finished" in said
    )
    state = read_state(find_checkpoint(grown / "refused"))
    assert not state["finished"]
    assert state["growth"]["distillation"] == 1, "nothing is seen again"
    assert (grown / "refused" / "forgetting.json").is_file()


def test_a_method_that_is_fitted_gets_banks_and_forgets_nothing(tmp_path, sets, monkeypatch, caplog):
    monkeypatch.setattr(discriminator, "STEPS", 10)
    words = ["--recipe", "level_search", "--set", "model.drawn_on=4", *SMALL, "--data", str(sets["materials"])]
    train(parse_arguments([*words, "--output-dir", str(tmp_path / "old")]), ALONE)
    words = ["--checkpoint", str(tmp_path / "old"), "--data", str(sets["solids"]), "--max-forgetting", "0"]
    train(parse_grow_arguments([*words, "--output-dir", str(tmp_path / "new")]), ALONE)
    before, after = weights(tmp_path / "old"), weights(tmp_path / "new")
    assert [name for name in before if not torch.equal(after[name], before[name])] == []
    entry = json.loads((tmp_path / "new" / "forgetting.json").read_text())
    assert set(entry["lost"].values()) == {0.0}
    assert entry["classes"]["solids/rope"]["after"]["I-AUROC"] is not None
    checkpoint = find_checkpoint(tmp_path / "new")
    described = read_state(checkpoint)["fitted"]
    assert {name for name, _ in described["banks"]} == {*entry["classes"]}
    of_new = [name.startswith("solids/") for name, _ in described["banks"]]
    assert described["judged_by"] == [int(is_new) for is_new in of_new], "what comes in has a discriminator of its own"
    assert load_checkpoint(checkpoint).model.describe() == described
    old_maps, maps = (load_normal_maps(find_checkpoint(tmp_path / name)) for name in ("old", "new"))
    assert {one.class_name for one in maps.sets} == {*entry["classes"]}
    assert [one for one in maps.sets if one.class_name.startswith("materials/")] == old_maps.sets
    assert read_state(checkpoint)["finished"]
    (checkpoint / "feedback").mkdir()
    (checkpoint / "feedback" / "0001.json").write_text("said")
    kept = {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*.*")}
    again = parse_grow_arguments([*words, "--resume", str(tmp_path / "new")])
    assert train(again, ALONE)
    assert {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*.*")} == kept, "nothing is done twice"
    (tmp_path / "new" / "forgetting.json").unlink()
    state = (checkpoint / "state.json").read_text()
    (checkpoint / "state.json").write_text(state.replace('"finished": true', '"finished": false'))
    take_digests_again(checkpoint)
    (find_checkpoint(tmp_path / "old") / "normal_maps.json").write_text("{")
    assert train(again, ALONE)
    assert "of old classes no scale for the colours of pictures is kept" in caplog.text
    assert load_normal_maps(checkpoint) == maps
    assert read_state(checkpoint)["finished"], "stopped in its review"
    assert (tmp_path / "new" / "forgetting.json").is_file()
    assert (checkpoint / "feedback" / "0001.json").read_text() == "said"
    model = next(path for path in kept if path.name.startswith("model-"))
    assert model.stat().st_mtime_ns == kept[model], "it is not fitted again"


@pytest.mark.long
def test_two_ranks_that_share_the_leaders_grow_as_one(base, sets, grown, tmp_path):
    config = tmp_path / "ep2.json"
    values: dict[str, Any] = json.loads((CONFIGS / "ep4.json").read_text())
    config.write_text(json.dumps({**values, "unimmad": {"ep_size": 2}}))
    words = [*command("deepspeed", 2)[:-1], "--no_local_rank", "--module", "unimmad", "grow"]
    words += ["--checkpoint", str(base), "--data", str(sets["solids"]), "--set", "training.steps=2"]
    words += ["--deepspeed_config", str(config), "--output-dir", "two"]
    done = run([*words, "--new-leaders", "3"], tmp_path)
    assert done.returncode != 0
    assert (
        "--new-leaders 3 can't be placed evenly on the 2 ranks of an expert-parallel group" in done.stderr + done.stdout
    )
    done = run([*words, "--new-leaders", "2"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    two, one = weights(tmp_path / "two"), weights(grown / "whole")
    for name, tensor in one.items():
        if not name.startswith("optimizer/"):
            torch.testing.assert_close(two[name], tensor, rtol=1e-5, atol=1e-5)
