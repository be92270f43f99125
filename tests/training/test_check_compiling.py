"""A machine that can't compile is told of before training begins, once a node."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from unimmad.config import load_recipe
from unimmad.training import run
from unimmad.training.loop import RankError

COMPILED = load_recipe("tiny", ["training.compile=true"])


@dataclass(frozen=True)
class Place:
    """A rank, and whether all can compile."""

    rank: int
    local_rank: int
    all_can: bool
    device: str = "cpu"

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def agreed(self, value: bool) -> bool:
        return value and self.all_can


@pytest.fixture
def no_compiler(monkeypatch) -> None:
    def refuse(device: str) -> None:
        raise ValueError(f"no compiler for {device}")

    monkeypatch.setattr(run, "check_compiling", refuse)


def test_the_first_rank_says_it_plainly(no_compiler):
    with pytest.raises(ValueError, match=r"^no compiler for cpu$"):
        run._check_compiling(COMPILED, Place(0, 0, all_can=False))


def test_another_node_says_it_once(no_compiler):
    with pytest.raises(RankError, match="rank 4: no compiler"):
        run._check_compiling(COMPILED, Place(4, 0, all_can=False))
    with pytest.raises(ValueError, match="no compiler") as found:
        run._check_compiling(COMPILED, Place(5, 1, all_can=False))
    assert not isinstance(found.value, RankError), "which rank 0 alone prints"


def test_a_node_that_can_waits_for_none_that_cannot(monkeypatch):
    monkeypatch.setattr(run, "check_compiling", lambda _: None)
    run._check_compiling(COMPILED, Place(0, 0, all_can=True))
    with pytest.raises(ValueError, match="on another node, whose own message says why"):
        run._check_compiling(COMPILED, Place(0, 0, all_can=False))


@pytest.mark.parametrize(
    ("overrides", "checked"),
    [
        ([], False),
        (["evaluation.compile=true"], False),
        (["evaluation.compile=true", "training.evaluate_every=5"], True),
    ],
)
def test_nothing_is_asked_where_nothing_is_compiled(no_compiler, overrides, checked):
    recipe, place = load_recipe("tiny", overrides), Place(0, 0, all_can=False)
    if not checked:
        run._check_compiling(recipe, place)
        return
    with pytest.raises(ValueError, match="no compiler"):
        run._check_compiling(recipe, place)
