"""Shards with a calibration split, an untrained checkpoint, and a calibrated one, made once for all tests of this
folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hand_made import hand_made_checkpoint, hand_made_shards, take_digests_again

from unimmad.checkpoint.conformal import thresholds_by_sensors
from unimmad.checkpoint.loading import load_checkpoint
from unimmad.checkpoint.thresholds import save_thresholds
from unimmad.config import load_recipe
from unimmad.data.index import load_index


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


CLASSES = ("solids/cookie", "solids/rope")
BLUR = {"blur_kernel": "null", "blur_sigma": "null", "blur_sigma_at_256": "8"}
OVERRIDES = ["model.kernel_sizes=[1, 3]", *(f"evaluation.{name}={value}" for name, value in BLUR.items())]


@pytest.fixture(scope="session")
def calibrated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    shards = hand_made_shards(folder / "shards", ["solids"])
    checkpoint, _ = hand_made_checkpoint(folder / "run", load_recipe("tiny", OVERRIDES), [shards])
    _give_every_leader_its_own_kernel(checkpoint)
    both = ("rgb", "depth")
    scores = {"solids/cookie": {both: [0.3, 0.4, 0.2]}, "solids/rope": {both: [0.5]}}
    save_thresholds(thresholds_by_sensors(scores, load_index(shards).datasets, CLASSES, 0.3), checkpoint)
    return checkpoint


def _give_every_leader_its_own_kernel(checkpoint: Path) -> None:
    """New leaders are almost equal, and a wrong route would not show."""
    from safetensors.torch import load_file, safe_open, save_file

    for path in checkpoint.glob("model-*.safetensors"):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        generator = torch.Generator().manual_seed(0)
        for name, tensor in tensors.items():
            if name.endswith(("logits_LNE", "gate.linear.weight")):
                tensor.copy_(2 * torch.randn(tensor.shape, generator=generator))
        save_file(tensors, path, metadata=metadata)
    take_digests_again(checkpoint)
    load_checkpoint(checkpoint)
