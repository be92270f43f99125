"""The file of an added class: whole as it was written, or refused in one line that names it; older files stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from unimmad.checkpoint.added_classes import (
    FOLDER,
    AddedClass,
    AddedEntry,
    added_file,
    load_added,
    remove_added,
    save_added,
)
from unimmad.checkpoint.conformal import thresholds_by_sensors
from unimmad.checkpoint.monitoring import MONITORING_NAME
from unimmad.checkpoint.thresholds import THRESHOLDS_NAME, SensorThreshold, load_thresholds, save_thresholds
from unimmad.data.index import DatasetEntry, Modality

NAME = "added/bolt"
WEIGHTS = "a" * 64
OF_AN_EARLIER_VERSION = "fca7769f0688e55d"
"""How the digest began that the version before ``digests`` wrote for ``made()``."""


def made(**changes: object) -> AddedClass:
    values = {
        "class_name": NAME,
        "dataset": DatasetEntry(field="industry", modalities=(Modality(name="rgb", slot=0, kind="rgb"),)),
        "images": 3,
        "banks": ((NAME, 0),),
        "thresholds": (SensorThreshold(value=1.5, images=3, fpr_bound=1.0, modalities=("rgb",)),),
        "borrowed_from": "nowhere",
        "weights": WEIGHTS,
    }
    return AddedClass(AddedEntry(**(values | changes)), {"usual_SO": torch.zeros(2, 0), "bank": torch.ones(4, 3)})


def test_what_is_written_is_read_and_an_older_files_digest_holds(tmp_path: Path) -> None:
    for added in (made(), made(digests=("ab", "cd"))):
        save_added(added, tmp_path)
        (found,) = load_added(tmp_path, WEIGHTS)
        assert found.entry.model_copy(update={"sha256": ""}) == added.entry
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in added.tensors.items())
    save_added(made(), tmp_path)
    (found,) = load_added(tmp_path, WEIGHTS)
    assert found.entry.sha256.startswith(OF_AN_EARLIER_VERSION)
    with safe_open(added_file(tmp_path, NAME), "pt") as file:
        header = json.loads(file.metadata()["unimmad"])
        tensors = {name: file.get_tensor(name) for name in added.tensors}
    older = {name: value for name, value in header.items() if name != "digests"}
    save_file(tensors, added_file(tmp_path, NAME), {"unimmad": json.dumps(older)})
    assert load_added(tmp_path, WEIGHTS)[0].entry == found.entry
    assert not remove_added(tmp_path, NAME).exists()
    with pytest.raises(ValueError, match="can't be removed: No such file"):
        remove_added(tmp_path, NAME)


def test_what_is_not_what_was_written_is_refused_in_one_line(tmp_path: Path) -> None:
    save_added(made(), tmp_path)
    path, (kept,) = added_file(tmp_path, NAME), load_added(tmp_path, WEIGHTS)
    whole = path.read_bytes()

    def refused(content: bytes | None = None, weights: str = WEIGHTS) -> str:
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=path.name) as error:
            load_added(tmp_path, weights)
        (line,) = str(error.value).splitlines()
        assert "add the class again (--replace), or remove the file" in line
        assert len(line) < 1000
        return line

    places = [*range(0, len(whole), 37), len(whole) - 1]
    changed = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in places]
    for content in [*(whole[:at] for at in places), b"", whole + b"x"]:
        refused(content)
    for content in changed:
        path.write_bytes(content)
        try:
            assert load_added(tmp_path, WEIGHTS)[0].entry == kept.entry, "a letter of a key that says what no key says"
        except ValueError:
            refused()
    assert "other weights" in refused(whole, "b" * 64)
    for metadata in ({}, {"unimmad": "[" * 100_000}, {"unimmad": json.dumps({"format": 2})}):
        save_file({"bank": torch.ones(1)}, path, metadata)
        refused()
    nan = AddedClass(made().entry, {"bank": torch.tensor([float("nan")])})
    save_added(nan, tmp_path)
    assert "bank" in refused()


def test_a_calibrated_class_can_be_removed_though_what_monitoring_compares_with_is_damaged(tmp_path: Path) -> None:
    dataset = made().entry.dataset
    scores = {name: {("rgb",): [0.1]} for name in (NAME, "other/nut")}
    save_added(made(), tmp_path)
    save_thresholds(thresholds_by_sensors(scores, {"added": dataset, "other": dataset}, (), 0.5, "fp32"), tmp_path)
    (tmp_path / MONITORING_NAME).write_bytes(b"damaged")
    remove_added(tmp_path, NAME)
    left = load_thresholds(tmp_path)
    assert left is not None
    assert set(left.classes) == {"other/nut"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [FOLDER, THRESHOLDS_NAME]
