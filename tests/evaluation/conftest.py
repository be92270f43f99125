"""Shards and an untrained checkpoint, made once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hand_made import hand_made_checkpoint, hand_made_shards

from unimmad.checkpoint.loading import LoadedCheckpoint, load_checkpoint
from unimmad.config import load_recipe


@pytest.fixture(scope="session")
def small_shards(tmp_path_factory) -> Path:
    """Four classes: cookie and rope (rgb, depth) and two of brains (four sequences)."""
    return hand_made_shards(tmp_path_factory.mktemp("shards") / "small", ["solids", "brains"])


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, small_shards) -> LoadedCheckpoint:
    """Of the tiny recipe."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    folder, _ = hand_made_checkpoint(run, load_recipe("tiny"), [small_shards])
    return load_checkpoint(folder)
