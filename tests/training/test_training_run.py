"""What a run refuses before it builds anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unimmad.parallel.world import World
from unimmad.training.arguments import parse_arguments
from unimmad.training.run import train


def test_a_weight_of_a_data_set_that_is_not_there_is_an_error_before_anything_is_made(parity_shards, tmp_path):
    words = ["--recipe", "tiny", "--data", str(parity_shards), "--output-dir", str(tmp_path / "run")]
    config = Path(__file__).parents[2] / "ds_configs" / "ep1.json"
    words += ["--deepspeed_config", str(config), "--set", "data.dataset_weights.solid=2"]
    with pytest.raises(
        ValueError, match=r"data.dataset_weights: no data set is called solid; .* did you mean solids\?"
    ):
        train(parse_arguments(words), World(0, 1, 0, torch.device("cpu")))
    assert not (tmp_path / "run").exists()
