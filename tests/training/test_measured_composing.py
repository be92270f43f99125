"""Rank 0 measures which branches compose their kernels, all ranks follow, and a checkpoint keeps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unimmad.checkpoint.folder import STATE_NAME, CheckpointFolder, read_state
from unimmad.config import load_recipe
from unimmad.data.reading.shard_set import ShardSet
from unimmad.methods.registry import new_model
from unimmad.model.cross_moe import MiMoEBranch, composing_is_cheaper
from unimmad.parallel.world import World
from unimmad.training import run
from unimmad.training.arguments import parse_arguments
from unimmad.training.checkpointing import RunFacts, _finish
from unimmad.training.composing import (
    REPEATS,
    WARM_UPS,
    WAYS,
    described,
    follow_composing,
    kept_composing,
    new_composing,
)
from unimmad.training.run_folder import RunFolder

CPU, GPU = torch.device("cpu"), torch.device("cuda")
RECIPE = load_recipe("tiny")
MEASURED = ((True, False, True), (False, False, True), (False, True, False))


class FakeTimer:
    """Gives times by which just ``MEASURED`` is faster, and one outlier that a mean would fall for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def __call__(self, works, repeats, device, label):
        assert list(works) == [WAYS[True], WAYS[False]]
        self.calls.append((label, repeats))
        level, kernel = (int(word.strip(":,")) for word in label.split()[1:4:2])
        faster = WAYS[MEASURED[level - 1][RECIPE.model.kernel_sizes.index(kernel)]]
        return {name: [1.0 if name == faster else 2.0] * (repeats - 1) + [50.0] for name in works}


def no_timer(*_):
    raise AssertionError("this rank has nothing to measure")


class Rank(World):
    """One of two, whose broadcasts are by hand."""

    said: Any = None

    def on_main(self, action: Callable[[], Any]) -> Any:
        Rank.said = action() if self.is_main else Rank.said
        return Rank.said


def test_rank_0_measures_every_place_both_ways_and_the_others_follow():
    timer = FakeTimer()
    assert new_composing(RECIPE, Rank(0, 2, 0, CPU), (2, 2), timer) == MEASURED
    assert new_composing(RECIPE, Rank(1, 2, 1, CPU), (2, 2), no_timer) == MEASURED
    assert len(timer.calls) == 2 * 9
    assert {repeats for label, repeats in timer.calls if "warm-up" in label} == {WARM_UPS}
    assert {repeats for label, repeats in timer.calls if "warm-up" not in label} == {REPEATS}


def test_the_real_timer_can_be_used_on_any_device(monkeypatch):
    monkeypatch.setattr("unimmad.training.composing.REPEATS", 1)
    monkeypatch.setattr("unimmad.training.composing.WARM_UPS", 1)
    found = new_composing(RECIPE, World(0, 1, 0, CPU), (1,))
    assert [len(of_level) for of_level in found] == [3, 3, 3]


def test_measuring_leaves_the_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    new_composing(RECIPE, World(0, 1, 0, CPU), (1,), FakeTimer())
    assert torch.equal(torch.rand(3), expected)


def composed_by(model) -> list[bool]:
    """Of each branch, whether it composed its kernels in a pass."""
    counts = []
    for branch in (module for module in model.modules() if isinstance(module, MiMoEBranch)):
        seen: list[int] = []
        original = branch._composed_kernels
        branch._composed_kernels = lambda routing, seen=seen, original=original: seen.append(1) or original(routing)
        counts.append(seen)
    size = RECIPE.model.image_size
    model(torch.randn(2, 3, size, size), (2,), torch.tensor([0, 1]))
    return [bool(seen) for seen in counts]


def test_branches_compute_as_measured_and_by_the_rule_without():
    model, _ = new_model(RECIPE, seed=0)
    sides = [RECIPE.model.image_size // stride for stride in (4, 8, 16)]
    rule = [
        composing_is_cheaper(RECIPE.model.embed_dim, side * side, size)
        for side in sides
        for size in RECIPE.model.kernel_sizes
    ]
    measured = [composed for of_level in MEASURED for composed in of_level]
    assert rule != measured
    assert composed_by(model) == rule
    follow_composing(model, MEASURED)
    assert composed_by(model) == measured


def saved(folder: Path, composing) -> Path:
    checkpoints = CheckpointFolder(folder)
    engine = SimpleNamespace(world=World(0, 1, 0, CPU), ep_size=1, model=torch.nn.Identity())
    facts = RunFacts(RECIPE, "none", [], 0, None, composing)
    _finish(checkpoints, checkpoints.begin(1), engine, facts, 1, finished=False, digests={}, seconds=None)
    checkpoint = checkpoints.newest()
    assert checkpoint is not None
    return checkpoint


def test_a_checkpoint_keeps_it_and_those_without_go_by_the_rule(tmp_path):
    state = read_state(saved(tmp_path / "measured", MEASURED))
    assert kept_composing(state, RECIPE.model, STATE_NAME) == MEASURED
    state = read_state(saved(tmp_path / "rule", None))
    assert "composing" not in state
    assert kept_composing(state, RECIPE.model, STATE_NAME) is None


@pytest.mark.parametrize("kept", [True, [[True] * 3] * 2, [[True] * 2] * 3, [[1] * 3] * 3, ["yes"] * 3])
def test_another_form_is_named(kept):
    with pytest.raises(ValueError, match=r"state.json: composing must be 3 lists of 3 truth values"):
        kept_composing({"composing": kept}, RECIPE.model, "state.json")


@pytest.mark.parametrize(
    ("device", "argv", "ep_size", "measures"),
    [(GPU, [], 1, True), (CPU, [], 1, False), (GPU, ["--deterministic"], 1, False), (GPU, [], 2, False)],
)
def test_a_new_run_measures_on_a_gpu_that_has_all_leaders_and_may_choose(
    parity_shards, monkeypatch, device, argv, ep_size, measures
):
    asked = []
    monkeypatch.setattr(run, "new_composing", lambda recipe, world, tokens: asked.append(tokens) or MEASURED)
    arguments = parse_arguments(["--recipe", "tiny", "--set", "training.global_batch=6", *argv])
    classes = ShardSet.open([parity_shards]).classes("train")
    two_modalities = {name: refs for name, refs in classes.items() if name.startswith("solids/")}
    world = World(0, 4, 0, device)
    found = run._composing(arguments, RunFolder(Path("new"), None), world, ep_size, two_modalities)
    assert found == (MEASURED if measures else None)
    assert asked == ([(2, 2)] if measures else [])


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("kept", [MEASURED, None])
def test_a_continued_run_never_measures_again(tmp_path, monkeypatch, device, kept):
    monkeypatch.setattr(run, "new_composing", no_timer)
    folder = RunFolder(tmp_path, saved(tmp_path, kept))
    arguments = replace(parse_arguments(["--recipe", "tiny"]), deterministic=device.type == "cpu")
    assert run._composing(arguments, folder, World(0, 1, 0, device), 1, {}) == kept


def test_the_log_says_where():
    assert described(None, (1, 3, 5)) == "composes kernels by the count of multiply-adds"
    assert described(MEASURED, (1, 3, 5)).endswith("faster: level 1 1 x 1, level 1 5 x 5, level 2 5 x 5, level 3 3 x 3")
    assert described(((False,),), (1,)).endswith("nowhere")
