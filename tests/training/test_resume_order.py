"""A run over every layout's shards, killed in mid-epoch on four ranks, goes on exactly on two."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from crashes import kill_all
from data.every_layout import COPIES, choices, make_copy
from launches import CONFIGS, SECONDS, command, environment

from unimmad.checkpoint.folder import find_checkpoint, read_state
from unimmad.data.layouts import find_sets
from unimmad.data.reading.shard_set import ShardSet
from unimmad.data.writing.shards import write_shards
from unimmad.data.writing.verify import verify_folder

RECORDING_TRAIN = Path(__file__).with_name("recording_train.py")
SAVED, KILLED_BEFORE, END = 2, 3, 5
"""Steps: of the checkpoint to go on from, that is never drawn by the killed run, of the end."""

Drawn = dict[int, list[list[object]]]
"""By step: each sample's name and the slots of its modalities."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[Path]:
    """Each layout's copy as shards, but the released index, which has the others' names, and medical scans, which need
    packages of their own."""
    root = tmp_path_factory.mktemp("layouts")
    folders = []
    for layout in COPIES.keys() - {"mmad_index", "medical"}:
        found_sets = find_sets(make_copy(layout, root / "sources"), modalities=choices(layout))
        sets = [found.source for found in found_sets]
        write_shards(sets, root / layout, progress=False)
        assert verify_folder(root / layout, progress=False) == []
        folders.append(root / layout)
    return sorted(folders)


def start(
    folder: Path, data: Sequence[Path], record: str, *argv: str, ranks: int, hold: int = -1
) -> subprocess.Popen[bytes]:
    """Train in the background in ``folder``; what each rank draws goes to ``folder/record``."""
    (folder / record).mkdir()
    launch = command("python" if ranks == 1 else "deepspeed", ranks)
    launch = [str(RECORDING_TRAIN) if word.endswith("train.py") else word for word in launch]
    usual = ["--deepspeed_config", str(CONFIGS / "ep1.json"), "--recipe", "tiny", "--max-steps", str(END)]
    settings = ["--set", "data.modality_dropout=0.3", "--set", f"training.checkpoint_every={SAVED}"]
    with (folder / f"{record}.txt").open("wb") as said:
        return subprocess.Popen(
            [*launch, *usual, *settings, *argv, "--data", *map(str, data)],
            cwd=folder,
            env={**environment(), "RECORD_FOLDER": str(folder / record), "HOLD_AT_STEP": str(hold)},
            stdout=said,
            stderr=subprocess.STDOUT,
        )


def finish(process: subprocess.Popen[bytes], folder: Path, record: str) -> str:
    try:
        code = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        kill_all(process)
        raise
    said = (folder / f"{record}.txt").read_text()
    assert code == 0, said[-3000:]
    return said


def drawn(folder: Path, ranks: int) -> Drawn:
    """The global batches: what the ranks drew, side by side."""
    of_ranks = [dict(json.loads(line) for line in (folder / f"{r}.jsonl").open()) for r in range(ranks)]
    assert all(steps.keys() == of_ranks[0].keys() for steps in of_ranks)
    return {step: [one for steps in of_ranks for one in steps[step]] for step in sorted(of_ranks[0])}


def wait_until_drawn(folder: Path, record: str, ranks: int, process: subprocess.Popen[bytes]) -> None:
    """Until every rank has drawn the last batch before it is to be killed."""
    deadline = time.monotonic() + SECONDS
    last = f"[{KILLED_BEFORE - 1}, "
    records = [folder / record / f"{rank}.jsonl" for rank in range(ranks)]
    while not all(path.is_file() and last in path.read_text() for path in records):
        assert process.poll() is None, (folder / f"{record}.txt").read_text()[-3000:]
        assert time.monotonic() < deadline, f"step {KILLED_BEFORE - 1} is not drawn in {SECONDS} s"
        time.sleep(0.05)


@pytest.mark.timeout(900)
def test_killed_on_four_ranks_and_resumed_on_two_it_draws_what_an_undisturbed_run_draws(data, tmp_path):
    shards = ShardSet.open(data)
    samples = sum(len(refs) for refs in shards.classes("train").values())
    assert samples // 4 > END, "all of it is one epoch"

    killed = start(tmp_path, data, "killed", ranks=4, hold=KILLED_BEFORE)
    try:
        wait_until_drawn(tmp_path, "killed", 4, killed)
    finally:
        kill_all(killed)
    state = read_state(find_checkpoint(tmp_path / "runs" / "tiny"))
    assert (state["step"], state["layout"]["world_size"]) == (SAVED, 4)

    said = finish(start(tmp_path, data, "resumed", "--set", "data.workers=1", ranks=2), tmp_path, "resumed")
    assert f"at step {SAVED}" in said
    other = tmp_path / "other"
    other.mkdir()
    finish(start(other, data, "undisturbed", ranks=1), other, "undisturbed")

    first, rest, whole = (
        drawn(folder, ranks)
        for folder, ranks in ((tmp_path / "killed", 4), (tmp_path / "resumed", 2), (other / "undisturbed", 1))
    )
    assert [list(steps) for steps in (first, rest, whole)] == [
        list(range(KILLED_BEFORE)),
        list(range(SAVED, END)),
        list(range(END)),
    ]
    assert first == {step: whole[step] for step in first}
    assert rest == {step: whole[step] for step in rest}
    assert len({str(name) for of_step in whole.values() for name, _ in of_step}) > 3 * 4, (
        "not one batch again and again"
    )
    _check_dropout_was_on(whole, shards)


def _check_dropout_was_on(whole: Drawn, shards: ShardSet) -> None:
    refs = [ref for of_class in shards.classes("train").values() for ref in of_class]
    modalities = {f"{ref.entry.dataset}/{ref.entry.key}": len(ref.entry.images) for ref in refs}
    drop_modalities = [name for of_step in whole.values() for name, slots in of_step if len(slots) < modalities[name]]
    assert drop_modalities
