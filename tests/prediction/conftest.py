"""Shards with a calibration split and an untrained checkpoint, made once for all tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hand_made import hand_made_checkpoint, hand_made_shards

from unimmad.config import load_recipe


@pytest.fixture(scope="session")
def calibration_shards(tmp_path_factory) -> Path:
    """cookie and rope (rgb, depth), cloth, tiles and nut (rgb); one training image of each is set aside."""
    folder = hand_made_shards(tmp_path_factory.mktemp("shards") / "aside", ["solids", "materials"])
    index = json.loads((folder / "index.json").read_text())
    for sample in index["samples"]:
        if sample["split"] == "train" and sample["key"].endswith("1"):
            sample["split"] = "calibration"
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory, calibration_shards) -> Path:
    """Of the tiny recipe."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    folder, _ = hand_made_checkpoint(run, load_recipe("tiny"), [calibration_shards])
    return folder
