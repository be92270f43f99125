"""A machine that can't compile is told of before training begins; on many ranks as every other problem of a node."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launches import CONFIGS

from unimmad.config import load_recipe
from unimmad.parallel.world import World
from unimmad.training import run
from unimmad.training.arguments import TrainArguments

ALONE = World(0, 1, 0, torch.device("cpu"))


def asked(*overrides: str) -> TrainArguments:
    recipe = load_recipe("tiny", ["data.workers=0", *overrides])
    return TrainArguments(recipe, CONFIGS / "ep1.json", (), Path("nowhere"), None, "auto", None)


@pytest.fixture
def no_compiler(monkeypatch) -> None:
    def refuse(device: torch.device) -> None:
        raise ValueError(f"no compiler for {device}")

    monkeypatch.setattr(run, "check_compiling", refuse)


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize(
    ("overrides", "checked"),
    [
        ([], False),
        (["training.compile=true"], True),
        (["evaluation.compile=true"], False),
        (["evaluation.compile=true", "training.evaluate_every=5"], True),
    ],
)
def test_nothing_is_asked_where_nothing_is_compiled(overrides, checked):
    if not checked:
        run._read_settings(asked(*overrides), ALONE)
        return
    with pytest.raises(ValueError, match=r"^no compiler for cpu$"):
        run._read_settings(asked(*overrides), ALONE)
