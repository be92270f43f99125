"""Any byte of a checkpoint that changes is noticed before something is loaded, and only what is read is hashed."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from hand_made import hand_made_checkpoint

from unimmad.checkpoint import digests
from unimmad.checkpoint.digests import DIGESTS_NAME, file_digest, verify_checkpoint, write_digests
from unimmad.checkpoint.folder import STATE_NAME
from unimmad.checkpoint.loading import OPTIMIZER_PREFIX, load_checkpoint
from unimmad.checkpoint.tensor_slices import INDEX_NAME, TensorSlice, build_index, write_pieces
from unimmad.config import load_recipe
from unimmad.inference.detector import Detector

MODEL = ["model-00000.safetensors", "model-00001.safetensors"]
OPTIMIZER = "optimizer-00000.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """Two files of weights, one of optimizer state."""
    folder, _ = hand_made_checkpoint(tmp_path_factory.mktemp("run"), load_recipe("tiny"), [])
    write_pieces(folder / OPTIMIZER, [TensorSlice(f"{OPTIMIZER_PREFIX}exp_avg/x", (3,), 0, torch.ones(3))])
    (folder / INDEX_NAME).write_text(json.dumps(build_index(folder)))
    write_digests(folder, {name: file_digest(folder / name) for name in [*MODEL, OPTIMIZER]})
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / saved.name))


@pytest.fixture
def hashed(monkeypatch) -> list[str]:
    """Names of the files that are hashed, as often as they are."""
    names: list[str] = []
    real = digests.file_digest

    def watched(path: Path) -> str:
        names.append(path.name)
        return real(path)

    monkeypatch.setattr(digests, "file_digest", watched)
    return names


def change_a_byte(path: Path, place: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_every_file_has_its_digest(saved):
    assert json.loads((saved / DIGESTS_NAME).read_text())["sha256"].keys() == {
        path.name for path in saved.iterdir() if path.name != DIGESTS_NAME
    }
    verify_checkpoint(saved)


@pytest.mark.parametrize("name", [STATE_NAME, INDEX_NAME, *MODEL, OPTIMIZER])
def test_one_bit_of_any_file_is_noticed_in_one_line_that_says_what_to_do(copy, name):
    change_a_byte(copy / name)
    with pytest.raises(ValueError, match=re.escape(f"{copy / name} is not what was saved")) as refused:
        verify_checkpoint(copy)
    assert "use another checkpoint of the run; --no-verify " in str(refused.value)
    assert "\n" not in str(refused.value)


def test_weights_that_changed_are_not_loaded_unless_asked(copy):
    """The last byte of a file is of a tensor, whose value nothing else would question."""
    before = load_checkpoint(copy).weights_digest
    change_a_byte(copy / MODEL[1], -2)
    with pytest.raises(ValueError, match=rf"{MODEL[1]} is not what was saved"):
        load_checkpoint(copy)
    with pytest.raises(ValueError, match=rf"{MODEL[1]} is not what was saved"):
        Detector.open(copy, device="cpu")
    assert load_checkpoint(copy, verify=False).weights_digest != before


def test_loading_a_model_hashes_no_optimizer_state(copy, hashed):
    (copy / OPTIMIZER).unlink()
    load_checkpoint(copy)
    assert sorted(hashed) == sorted([STATE_NAME, INDEX_NAME, *MODEL])


def test_nothing_is_hashed_where_it_is_not_wanted(copy, hashed):
    load_checkpoint(copy, verify=False)
    assert hashed == []


@pytest.mark.parametrize("size", [2, 5])
def test_ranks_hash_each_tensor_file_once_in_all(saved, hashed, size):
    for rank in range(size):
        verify_checkpoint(saved, part=(rank, size))
    assert sorted(name for name in hashed if name.endswith(".safetensors")) == sorted([*MODEL, OPTIMIZER])


def test_some_rank_notices_what_changed(copy):
    change_a_byte(copy / MODEL[0])
    refused = []
    for rank in range(2):
        try:
            verify_checkpoint(copy, part=(rank, 2))
        except ValueError:
            refused.append(rank)
    assert len(refused) == 1


def test_a_checkpoint_of_an_older_version_is_loaded_with_one_line(copy, caplog):
    (copy / DIGESTS_NAME).unlink()
    with caplog.at_level(logging.WARNING):
        load_checkpoint(copy)
        verify_checkpoint(copy, part=(1, 2))
    (record,) = caplog.records
    assert (
        record.getMessage() == f"{copy} has no digests.json, as checkpoints of older versions: it is loaded unverified"
    )


def test_a_file_without_a_digest_is_refused(copy):
    content = json.loads((copy / DIGESTS_NAME).read_text())
    del content["sha256"][MODEL[0]]
    (copy / DIGESTS_NAME).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{DIGESTS_NAME} has no digest of {MODEL[0]}; use another"):
        verify_checkpoint(copy)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"sha256": 3}', '{"sha256": {"state.json": "00"}}'])
def test_damaged_digests_are_named(copy, text):
    (copy / DIGESTS_NAME).write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(copy / DIGESTS_NAME))) as refused:
        verify_checkpoint(copy)
    assert "--no-verify" in str(refused.value)


def test_a_file_that_cannot_be_read_to_its_end_is_named(copy, monkeypatch):
    def failing(path: Path) -> str:
        if path.name == MODEL[0]:
            raise OSError(5, "Input/output error")
        return file_digest(path)

    monkeypatch.setattr(digests, "file_digest", failing)
    with pytest.raises(ValueError, match=rf"{MODEL[0]} is not what was saved"):
        verify_checkpoint(copy)
