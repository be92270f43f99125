"""What stays of a checkpoint that is said to be finished."""

from __future__ import annotations

import json
from pathlib import Path

from unimmad.checkpoint.digests import known_digests
from unimmad.checkpoint.folder import STATE_NAME, CheckpointFolder, read_state
from unimmad.checkpoint.tensor_slices import INDEX_NAME
from unimmad.checkpoint.writing import mark_finished


def test_a_checkpoint_that_is_finished_keeps_what_was_said_of_it_and_added(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    partial = folder.begin(3)
    (partial / STATE_NAME).write_text(json.dumps({"recipe": {}, "step": 3, "finished": False}))
    (partial / INDEX_NAME).write_text("{}")
    checkpoint = folder.commit(partial, 3, keep=1)
    (checkpoint / "feedback").mkdir()
    (checkpoint / "feedback" / "0001.json").write_text("said")
    (checkpoint / "normal_maps.json").write_text("maps")
    assert mark_finished(folder, checkpoint, keep=1) == checkpoint
    assert read_state(checkpoint)["finished"]
    assert (checkpoint / "feedback" / "0001.json").read_text() == "said"
    assert (checkpoint / "normal_maps.json").read_text() == "maps"
    assert set(known_digests(checkpoint) or {}) == {STATE_NAME, INDEX_NAME}
