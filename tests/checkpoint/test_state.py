import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch

from unimmad.checkpoint import state as state_module
from unimmad.checkpoint.digests import file_digest
from unimmad.checkpoint.folder import read_state
from unimmad.checkpoint.state import Layout, build_state, write_index_and_state
from unimmad.checkpoint.tensor_slices import TensorReader, TensorSlice, write_pieces
from unimmad.config import load_recipe, parse_recipe

RECIPE = load_recipe("tiny", ["training.global_batch=6"])


def some_state() -> dict[str, Any]:
    return build_state(
        RECIPE, step=7, finished=False, backbone_weights="none (random)", data=["a", "b"], layout=Layout(4, 2, 1)
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "model-00000.safetensors"
    write_pieces(file, [TensorSlice("x", (2, 2), 0, torch.arange(4.0).reshape(2, 2))])
    write_index_and_state(tmp_path, some_state(), {file.name: file_digest(file)})
    state = read_state(tmp_path)
    assert state == json.loads(json.dumps(some_state()))
    assert (state["step"], state["samples_seen"], state["data_position"], state["finished"]) == (7, 42, 42, False)
    assert state["layout"] == {"world_size": 4, "ep_size": 2, "zero_stage": 1}
    assert parse_recipe(state["recipe"], "state") == RECIPE
    assert TensorReader(tmp_path).read("x").tolist() == [[0, 1], [2, 3]]


def test_tensors_with_a_gap_get_no_state(tmp_path: Path) -> None:
    write_pieces(tmp_path / "model-00000.safetensors", [TensorSlice("x", (4,), 1, torch.zeros(3))])
    with pytest.raises(ValueError, match="the pieces of x do not make up its shape"):
        write_index_and_state(tmp_path, some_state(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model-00000.safetensors"]


def test_a_package_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_deepspeed(package: str) -> str:
        if package == "deepspeed":
            raise PackageNotFoundError
        return version(package)

    monkeypatch.setattr(state_module, "version", without_deepspeed)
    versions = some_state()["versions"]
    assert versions["deepspeed"] is None
    assert versions["torch"] == version("torch")
